"""SentencePiece vocabularies (Kudo & Richardson 2018) as tokenizers of the ``tokenizers`` library.

They are read from a ``tokenizer.model``, a protocol buffer (sentencepiece_model.proto), or from the metadata of a GGUF file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.errors import InputError
from triptych.io.files import read_bounded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
MAX_MODEL = 64 << 20
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in pieces


@dataclass(frozen=True)
class SentencePieces:
    """``pieces[i]``, ``scores[i]`` and ``kinds[i]`` belong to id i. A special id below 0 means that there is no such token."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    model_type: int = BPE
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    add_prefix: bool = True  # put a space before the text
    squeeze: bool = False  # replace several spaces by one and strip the text
    charsmap: bytes = b""  # compiled normalisation rules

    def __post_init__(self) -> None:
        if not len(self.pieces) == len(self.scores) == len(self.kinds) > 0:
            raise InputError(
                f"{len(self.pieces)} pieces, {len(self.scores)} scores and {len(self.kinds)} kinds: expected the same number of each"
            )
        if len(set(self.pieces)) < len(self.pieces):
            raise InputError("the SentencePiece vocabulary contains a piece twice")
        if self.model_type not in (UNIGRAM, BPE):
            raise InputError(
                f"the type of the SentencePiece model is {self.model_type}, expected unigram (1) or BPE (2)"
            )

    def of_kind(self, kind: int) -> list[str]:
        return [piece for piece, k in zip(self.pieces, self.kinds, strict=True) if k == kind]


def read_model(path: Path) -> SentencePieces:
    """Read a ``tokenizer.model`` or ``spiece.model``.

    Raises:
        InputError: it cannot be read, or is not a SentencePiece model.
    """
    data = read_bounded(path, MAX_MODEL)
    try:
        return _model(data)
    except (ValueError, IndexError, TypeError, struct.error) as error:
        why = str(error) if isinstance(error, InputError) else "its bytes are not a protocol buffer's"
        raise InputError(f"{path} is not a SentencePiece model: {why}") from None


def _model(data: bytes) -> SentencePieces:
    """Parse a ModelProto; its fields are identified by their numbers."""
    pieces, scores, kinds = [], [], []
    trainer: dict[int, bytes | int] = {}
    normaliser: dict[int, bytes | int] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            pieces.append(_bytes(piece[1]).decode())
            scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
            kinds.append(_int(piece.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normaliser = dict(_fields(_bytes(value)))
    return SentencePieces(
        tuple(pieces),
        tuple(scores),
        tuple(kinds),
        model_type=_int(trainer.get(3, UNIGRAM)),
        unk_id=_int(trainer.get(40, 0)),
        bos_id=_int(trainer.get(41, 1)),
        eos_id=_int(trainer.get(42, 2)),
        add_prefix=bool(normaliser.get(3, 1)),
        squeeze=bool(normaliser.get(4, 1)),
        charsmap=_bytes(normaliser.get(2, b"")),
    )


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The number and value of each field of a message. Raises ValueError or IndexError: it is not a protocol buffer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > len(data):
            raise ValueError("truncated")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("expected bytes")
    return value


def _int(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise TypeError("expected a number")
    return value


def build_tokenizer(model: SentencePieces) -> Tokenizer:
    """The same tokenizer in the ``tokenizers`` library, with the control pieces as special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    byte_fallback = BYTE in model.kinds
    if model.model_type == UNIGRAM:
        scored = list(zip(model.pieces, model.scores, strict=True))
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=model.unk_id, byte_fallback=byte_fallback))
    else:
        ids = {piece: i for i, piece in enumerate(model.pieces)}
        unknown = model.pieces[model.unk_id] if 0 <= model.unk_id < len(ids) else None
        pairs = merges(model)
        tokenizer = Tokenizer(models.BPE(ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE_MARK)])
    parts = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if model.add_prefix else []))
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in model.of_kind(CONTROL)])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in model.of_kind(USER_DEFINED)])
    return tokenizer


def merges(model: SentencePieces) -> list[tuple[str, str]]:
    """The merges that BPE needs, the best first: all pairs of pieces that make a piece. SentencePiece stores only the pieces."""
    normal = {piece: i for i, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)) if kind == NORMAL}
    merges = []
    for piece, i in normal.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(normal[left], normal[right]) for left, right in halves if left in normal and right in normal]
        merges += [(-model.scores[i], i, pair) for pair in sorted(pairs)]
    return [(model.pieces[left], model.pieces[right]) for _, _, (left, right) in sorted(merges)]
