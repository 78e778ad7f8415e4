"""The tokenizer of a language model: text to subword ids and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
GGUF_SPLITS = {  # `tokenizer.ggml.pre` -> how a text is cut before merging, step by step
    "default": (GPT2_SPLIT,),
    "gpt-2": (GPT2_SPLIT,),
    "smollm": (r"\p{N}", GPT2_SPLIT),
    "starcoder": (r"\p{N}", GPT2_SPLIT),
    "llama-bpe": (LLAMA3_SPLIT,),
    "qwen2": (QWEN2_SPLIT,),
}
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4


@dataclass(frozen=True)
class TextTokenizer:
    """A language model's own: text to subword ids and back, and its way of writing a conversation.

    ``encode`` takes the names of special tokens (``<|im_end|>``) for plain text unless told otherwise: what a user types cannot
    end a turn. ``chat`` refuses texts that hold one.
    """

    tokenizer: Tokenizer
    specials: dict[str, int]
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False  # whether the model expects every text to begin with ``bos_id``
    template: str | None = None  # Jinja, as transformers uses it

    def __post_init__(self) -> None:
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        object.__setattr__(self, "_special", re.compile(f"({'|'.join(names)})" if names else "(?!)"))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> TextTokenizer:
        """From the metadata of a GGUF file.

        InputError: it is of a kind that cannot be built (not byte-level BPE), or makes no sense.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or cut not in GGUF_SPLITS:
            known = ", ".join(GGUF_SPLITS)
            raise InputError(f"a GGUF tokenizer of the kind {kind!r} / {cut!r} cannot be read: gpt2 / {known} can")
        try:
            words, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
            kinds = metadata.get("tokenizer.ggml.token_type", [])
            pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
            ids = {word: i for i, word in enumerate(words)}
            tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=cut == "llama-bpe"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"the GGUF file's vocabulary makes no sense: {str(error)[:200]}") from None
        if cut == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in GGUF_SPLITS[cut]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        own = [word for word, k in zip(words, kinds, strict=False) if k == GGUF_USER_DEFINED]
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in own])
        ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        return cls(
            tokenizer,
            {word: i for i, (word, k) in enumerate(zip(words, kinds, strict=False)) if k == GGUF_CONTROL and word},
            bos_id=bos,
            eos_ids=frozenset(i for i in ends if i is not None),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)) and bos is not None,
            template=metadata.get("tokenizer.chat_template"),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> TextTokenizer:
        """From tokenizer.json, or vocab.json and merges.txt, and tokenizer_config.json, as transformers saves them.

        InputError: the files are not there or make no sense.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        settings = _read_json(directory / "tokenizer_config.json")
        try:
            if (directory / "tokenizer.json").exists():
                tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            else:
                vocabulary, merges = str(directory / "vocab.json"), str(directory / "merges.txt")
                tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
                tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
                tokenizer.decoder = decoders.ByteLevel()
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{directory} holds no usable tokenizer: {str(error)[:200]}") from None
        named = [_content(settings.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")]
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in named if name])
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        specials = {token.content: i for i, token in added.items() if token.special}
        bos, eos = (specials.get(name) if name else None for name in named[:2])
        template = settings.get("chat_template")
        if (directory / "chat_template.jinja").exists():
            template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
        add_bos = settings.get("add_bos_token")
        if add_bos is None and bos is not None:
            add_bos = tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos]
        return cls(
            tokenizer,
            specials,
            bos_id=bos,
            eos_ids=frozenset() if eos is None else frozenset([eos]),
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
            elif piece:
                ids += self.tokenizer.encode(piece, add_special_tokens=False).ids
        return ids

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
            if found := self._special.search(message["content"]):  # type: ignore[attr-defined]
                raise InputError(f"a text holds {found[0]}, which is a control token of the language model: remove it")
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
