"""The tokenizer of a language model: text to subword ids and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError
from triptych.text import byte_level, sentencepiece
from triptych.text.sentencepiece import CONTROL, NORMAL, SentencePieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer


NAMED = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class TextTokenizer:
    """A language model's own: text to subword ids and back, and its way of writing a conversation.

    ``encode`` takes the names of special tokens (``<|im_end|>``) for plain text by default: what a user types cannot
    end a turn. ``chat`` refuses texts that hold one.
    """

    tokenizer: Tokenizer
    specials: dict[str, int]
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    unk_id: int | None = None  # what stands for unknown words
    add_bos: bool = False  # whether the model expects every text to begin with ``bos_id``
    template: str | None = None  # Jinja, as transformers uses it

    def __post_init__(self) -> None:
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        object.__setattr__(self, "_special", re.compile(f"({'|'.join(names)})" if names else "(?!)"))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> TextTokenizer:
        """From the metadata of a GGUF file: byte-level BPE (``gpt2``) or SentencePiece (``llama``).

        Raises:
            InputError: it is of another kind, or a field is missing or invalid.
        """
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise InputError(f"a GGUF tokenizer of the kind {kind!r} cannot be read: gpt2 and llama can")
        try:
            words = [str(word) for word in metadata["tokenizer.ggml.tokens"]]
            kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(words)
            if kind == "gpt2":
                tokenizer = byte_level.from_gguf_metadata(metadata, words, kinds)
            else:
                scores, prefix = (
                    metadata["tokenizer.ggml.scores"],
                    metadata.get("tokenizer.ggml.add_space_prefix", True),
                )
                unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
                pieces = SentencePieces(
                    tuple(words), tuple(scores), tuple(kinds), unk_id=unknown, add_prefix=bool(prefix)
                )
                tokenizer = sentencepiece.build_tokenizer(pieces)
                tokenizer.encode_special_tokens = True
        except InputError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"the vocabulary of the GGUF file is invalid: {str(error)[:200]}") from None
        ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        return cls(
            tokenizer,
            {word: i for i, (word, k) in enumerate(zip(words, kinds, strict=False)) if k == CONTROL and word},
            bos_id=bos,
            eos_ids=frozenset(i for i in ends if i is not None),
            unk_id=metadata.get("tokenizer.ggml.unknown_token_id"),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")) and bos is not None,
            template=metadata.get("tokenizer.chat_template"),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> TextTokenizer:
        """From the files that transformers saves: tokenizer_config.json, and tokenizer.json, vocab.json with merges.txt, or a
        SentencePiece model.

        Raises:
            InputError: the files are not there or cannot be read.
        """
        from tokenizers import AddedToken

        settings = _read_json(directory / "tokenizer_config.json")
        tokenizer, defaults = _read_files(directory)
        named = {name: _content(settings.get(f"{name}_token")) or defaults.get(name) for name in NAMED}
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in named.values() if name])
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        bos, eos = specials.get(named["bos"] or ""), specials.get(named["eos"] or "")
        template = settings.get("chat_template")
        if (directory / "chat_template.jinja").exists():
            template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
        add_bos = settings.get("add_bos_token")
        if add_bos is None and bos is not None:
            add_bos = "bos" in defaults or tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos]
        return cls(
            tokenizer,
            specials,
            bos_id=bos,
            eos_ids=frozenset() if eos is None else frozenset([eos]),
            unk_id=specials.get(named["unk"] or ""),
            add_bos=bool(add_bos) and bos is not None,
            template=template if isinstance(template, str) else None,
        )

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str, *, specials: bool = False, begin: bool = False) -> list[int]:
        """Ids of a text. ``specials``: names of special tokens stand for them; ``begin``: put ``bos_id`` first if the model expects it."""
        ids = [self.bos_id] if begin and self.add_bos and self.bos_id is not None else []
        pieces = self._special.split(text) if specials else [text]  # type: ignore[attr-defined]
        for piece in pieces:
            if specials and piece in self.specials:
                ids.append(self.specials[piece])
            else:
                ids += self.plain_ids(piece)
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """Ids of a text without special tokens. A vocabulary that would make one of its name gets the name letter by letter."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not ({*self.specials.values()} - {self.unk_id}) & {*ids}:
            return ids
        parts = (
            [part] if i % 2 == 0 else [*part]
            for i, part in enumerate(self._special.split(text))  # type: ignore[attr-defined]
        )
        pieces = [piece for part in parts for piece in part]
        return [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens. An unfinished character of several bytes becomes U+FFFD."""
        hidden = set(self.specials.values())
        return self.tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> list[int]:
        """Ids of a conversation, as the model was taught to read one.

        Args:
            messages: each with ``role`` (system, user, assistant) and ``content``.
            answer: end with the beginning of the assistant's next turn.

        Raises:
            InputError: the model has no chat template, the template refuses, or a text holds the name of a special token.
        """
        for message in messages:
            if match := self._special.search(message["content"]):  # type: ignore[attr-defined]
                raise InputError(f"a text holds {match[0]}, which is a control token of the language model: remove it")
        return self.encode(self.render(messages, answer=answer), specials=True)

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The text that ``chat`` encodes."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.template is None:
            raise InputError("this language model has no chat template: it only continues texts")

        def refuse(message: str) -> None:
            raise TemplateError(message)

        names = {i: name for name, i in self.specials.items()}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(self.template).render(
                messages=messages,
                add_generation_prompt=answer,
                bos_token=names.get(-1 if self.bos_id is None else self.bos_id, ""),
                eos_token=names.get(min(self.eos_ids, default=-1), ""),
            )
        except Exception as error:  # a template may fail in any way that an expression may
            raise InputError(f"the chat template refuses this conversation: {str(error)[:200]}") from None


def _read_files(directory: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer in a directory, and the special tokens that it names itself."""
    from tokenizers import AddedToken, Tokenizer

    try:
        if (directory / "tokenizer.json").exists():
            return Tokenizer.from_file(str(directory / "tokenizer.json")), {}
        for name in ("tokenizer.model", "spiece.model"):
            if (directory / name).exists():
                model = sentencepiece.read_model(directory / name)
                tokenizer = sentencepiece.build_tokenizer(model)
                extra = _read_json(directory / "added_tokens.json")
                tokenizer.add_special_tokens(
                    [AddedToken(x, normalized=False) for x in sorted(extra, key=extra.__getitem__)]
                )
                ids = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id}
                return tokenizer, {name: model.pieces[i] for name, i in ids.items() if 0 <= i < len(model.pieces)}
        return byte_level.from_files(directory / "vocab.json", directory / "merges.txt"), {}
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{directory} holds no usable tokenizer: {str(error)[:200]}") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in an optional JSON file; empty when there is none."""
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def _content(token: Any) -> str | None:
    """tokenizer_config.json names a token by its text, or by an object around it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
