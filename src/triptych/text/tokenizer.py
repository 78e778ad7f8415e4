"""The tokenizer of a language model: text to subword ids and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError
from triptych.text import byte_level, sentencepiece
from triptych.text import tokenizer_files as files
from triptych.text.letters import check_unicode
from triptych.text.sentencepiece import CONTROL, NORMAL, SentencePieces
from triptych.text.vocabulary import same_things

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TextTokenizer:
    """A language model's own tokenizer, with its chat template.

    By default ``encode`` treats the names of special tokens (``<|im_end|>``) as plain text, so that a user's text cannot
    end a turn. ``chat`` refuses texts that contain one.
    """

    tokenizer: Tokenizer
    specials: dict[str, int]
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    unk_id: int | None = None  # the token for unknown words
    add_bos: bool = False  # whether the model expects every text to begin with ``bos_id``
    template: str | None = None  # the chat template: Jinja, as in transformers

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
                pieces = SentencePieces(
                    tuple(words),
                    tuple(metadata["tokenizer.ggml.scores"]),
                    tuple(kinds),
                    unk_id=metadata.get("tokenizer.ggml.unknown_token_id", 0),
                    add_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
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
            InputError: the files are missing or cannot be read.
        """
        from tokenizers import AddedToken

        settings = files.read_object(directory / "tokenizer_config.json")
        tokenizer, defaults = files.read_tokenizer(directory, settings)
        named = files.named_tokens(directory, settings, defaults)
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in named.values() if name])
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        bos, eos = specials.get(named["bos"] or ""), specials.get(named["eos"] or "")
        if bos is None and not settings:  # what tokenizer.json puts in front says it by itself
            whole, text = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
            bos = whole[0] if text and whole[1 : 1 + len(text)] == text else None
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
            template=files.chat_template(directory, settings),
        )

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str, *, specials: bool = False, begin: bool = False) -> list[int]:
        """Ids of a text. ``specials``: names of special tokens become those tokens; ``begin``: ``bos_id`` first if the model expects it."""
        check_unicode(text)
        ids = [self.bos_id] if begin and self.add_bos and self.bos_id is not None else []
        pieces = self._special.split(text) if specials else [text]  # type: ignore[attr-defined]
        for piece in pieces:
            if specials and piece in self.specials:
                ids.append(self.specials[piece])
            else:
                ids += self.plain_ids(piece)
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """Ids of a text, none of a special token: where the vocabulary would produce one, its name is encoded letter by letter."""
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
        """The text of ids, without special tokens. An incomplete character of several bytes becomes U+FFFD."""
        special = set(self.specials.values())
        return self.tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=False)

    def word_token(self, word: str) -> int | None:
        """The token that is a whole word behind a space; None if it takes several, or is unknown."""
        ids = self.plain_ids(f" {word}")
        return ids[0] if len(ids) == 1 and ids[0] != self.unk_id else None

    def repetitions(self, token: int) -> frozenset[int]:
        """The tokens that a caption with ``token`` should not contain any more: one that begins a content word, and the word's synonyms.
        None for a function word, a number or a part of a word."""
        text = self.decode([token])
        word = text.strip().lower()
        things = same_things(word) if text[:1].isspace() and word.isalpha() else frozenset()
        tokens = (self.word_token(thing) for thing in things)
        return frozenset((token, *(known for known in tokens if known is not None)) if things else ())

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> list[int]:
        """Ids of a conversation in the format of the model's chat template.

        Args:
            messages: each with ``role`` (system, user, assistant) and ``content``.
            answer: end with the beginning of the assistant's next turn.

        Raises:
            InputError: the model has no chat template, the template refuses, or a text contains the name of a special token.
        """
        for message in messages:
            if match := self._special.search(message["content"]):  # type: ignore[attr-defined]
                raise InputError(
                    f"a text contains {match[0]}, which is a control token of the language model: remove it"
                )
        return self.encode(self.render(messages, answer=answer), specials=True)

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The text that ``chat`` encodes."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.template is None:
            raise InputError(
                "this language model has no chat template, so it only continues texts: choose one that chats"
            )

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
        except Exception as error:  # an expression in a template may raise anything
            raise InputError(f"the chat template refuses this conversation: {str(error)[:200]}") from None
