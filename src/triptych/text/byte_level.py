"""Byte-level BPE: the tokenizers of GPT-2, Llama 3, Qwen2 and others, which differ in how a text is split before merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError
from triptych.text.sentencepiece import USER_DEFINED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# With these, words of the vocabulary are one token, whatever the merges.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # the text is first normalised to NFC
TEXT_SPLITS = {  # `tokenizer.ggml.pre` -> the patterns that split a text before merging, one after another
    "default": (GPT2_SPLIT,),
    "gpt-2": (GPT2_SPLIT,),
    "smollm": (r"\p{N}", GPT2_SPLIT),
    "starcoder": (r"\p{N}", GPT2_SPLIT),
    "refact": (r"\p{N}", GPT2_SPLIT),
    **dict.fromkeys(("mpt", "olmo", "phi-2"), (GPT2_SPLIT,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (LLAMA3_SPLIT,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (QWEN2_SPLIT,)),
    "tekken": (TEKKEN_SPLIT,),
}


def from_gguf_metadata(metadata: Mapping[str, Any], words: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    """From the metadata of a GGUF file. Raises InputError: its way of splitting texts is not in ``TEXT_SPLITS``."""
    from tokenizers import AddedToken
    from tokenizers.models import BPE

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in TEXT_SPLITS:
        raise InputError(f"a GGUF tokenizer that splits texts as {pre!r} cannot be read: {', '.join(TEXT_SPLITS)} can")
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = over_bytes(BPE(ids, pairs, ignore_merges=pre in WHOLE_WORDS), pre)
    own = [word for word, kind in zip(words, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in own])
    return tokenizer


def from_files(vocabulary: Path, merges: Path, pre: str = "gpt-2") -> Tokenizer:
    """From GPT-2's files, vocab.json and merges.txt; ``pre``: a key of ``TEXT_SPLITS``."""
    from tokenizers.models import BPE

    return over_bytes(BPE.from_file(str(vocabulary), str(merges)), pre)


def over_bytes(model: Any, pre: str) -> Tokenizer:
    """A tokenizer that splits texts as ``TEXT_SPLITS[pre]`` says and merges bytes."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in TEXT_SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
