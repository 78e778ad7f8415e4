"""BERT's word pieces, for the Q-Former: lower case, ``[CLS] pieces [SEP]``, and [DEC] as the first token of generated text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from triptych.errors import InputError
from triptych.generate import Search
from triptych.io.files import read_bounded
from triptych.text.letters import check_unicode

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_VOCABULARY_FILE = 16 << 20
JOINED = re.compile(r" (-|'(?= (?:s|t|re|ve|ll|d|m)\b)) ")  # "long - haired", "dog ' s": BERT splits at punctuation


class WordPieces:
    """``words[i]`` is the word piece of id i; [DEC] is appended if it is missing."""

    def __init__(self, words: Sequence[str]) -> None:
        ids = {word: i for i, word in enumerate(words)}
        if absent := [word for word in SPECIAL_PIECES if word not in ids]:
            raise InputError(f"the vocabulary has no {absent[0]}: it is not BERT's")
        if len(ids) < len(words):
            raise InputError("the vocabulary contains a word piece twice")
        self.dec = ids.setdefault("[DEC]", len(ids))
        self.pad, self.unk, self.cls, self.sep = (ids[word] for word in SPECIAL_PIECES)
        self.words = tuple(ids)
        self._tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = processors.BertProcessing(("[SEP]", self.sep), ("[CLS]", self.cls))
        self._tokenizer.decoder = decoders.WordPiece()

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``. Raises OSError."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> WordPieces:
        """Read a ``vocab.txt``: one word piece a line.

        Raises:
            InputError: it cannot be read, or is not BERT's.
        """
        try:
            text = read_bounded(path, MAX_VOCABULARY_FILE).decode().replace("\r\n", "\n")
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a vocabulary: it is not UTF-8 text") from None
        return cls(text.removesuffix("\n").split("\n"))

    def __len__(self) -> int:
        return len(self.words)

    def encode_arrays(
        self, texts: Sequence[str], max_tokens: int = 512, cut: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """``[CLS] pieces [SEP]`` of each text, padded on the right: ``input_ids [B, T]`` and ``text_mask [B, T]``, True on text.

        The names of special tokens inside a text are ordinary text.

        Args:
            max_tokens: the length limit of a text, [CLS] and [SEP] included.
            cut: cut longer texts instead of refusing them.

        Raises:
            InputError: a text is longer than ``max_tokens``.
        """
        for text in texts:
            check_unicode(text)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > max_tokens:
                if not cut:
                    raise InputError(f"a text of {len(row)} word pieces, {max_tokens} at most: {text[:40]!r}...")
                row[max_tokens - 1 :] = [self.sep]
        lengths = np.array([len(row) for row in rows], np.int64)
        width = max(map(len, rows), default=0)
        input_ids = np.array([row + [self.pad] * (width - len(row)) for row in rows], np.int64)
        return input_ids.reshape(len(rows), width), np.arange(width) < lengths[:, None]

    def encode(self, texts: Sequence[str], max_tokens: int = 512, cut: bool = False) -> tuple[Tensor, Tensor]:
        """``encode_arrays`` for torch."""
        import torch

        ids, mask = self.encode_arrays(texts, max_tokens, cut)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def knows_a_word(self, text: str) -> bool:
        """Whether the vocabulary has a word of the text, or a piece of at least three letters of one. Words in other scripts are cut into
        single letters, which carry no meaning."""
        pieces = [self.words[i] for i in self._tokenizer.encode(text).ids[1:-1]]
        followed = [piece.startswith("##") for piece in (*pieces[1:], "")]
        for piece, goes_on in zip(pieces, followed, strict=True):
            letters = piece.removeprefix("##")
            if not any(map(str.isalnum, letters)) or piece == "[UNK]":
                continue
            whole = not goes_on and not piece.startswith("##")
            if len(letters) >= 3 or (whole and (len(letters) == 2 or letters.isascii())):
                return True
        return False

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, in lower case and without special words."""
        specials = {self.pad, self.unk, self.cls, self.sep, self.dec}
        text = self._tokenizer.decode([i for i in ids if i not in specials])
        return JOINED.sub(r"\1", text)


def itg_search(words: WordPieces, search: Search) -> Search:
    """The same search over word pieces: a text ends with [SEP] and holds no other special word."""
    return replace(search, eos=frozenset({words.sep}), banned=frozenset({words.pad, words.unk, words.cls, words.dec}))
