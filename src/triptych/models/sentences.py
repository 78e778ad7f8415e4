"""Sentence vectors by MiniLM (all-MiniLM-L6-v2, an embedded part): texts that mean the same lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from triptych.checkpoints.parts import part_path
from triptych.checkpoints.store import load_tensors
from triptych.checkpoints.tables.blip2 import load_bert
from triptych.evidence import Floats
from triptych.nn.configs import QFormerConfig
from triptych.nn.qformer import QFormer
from triptych.text.wordpiece import WordPieces

SENTENCES_TOGETHER = 128


@cache
def minilm() -> tuple[QFormer, WordPieces]:
    """MiniLM as the text side of a Q-Former, and its word pieces. Raises TriptychError: it cannot be fetched."""
    words = WordPieces.read(part_path("minilm-l6", "vocab.txt"))
    model = QFormer(QFormerConfig(1, vocab_size=len(words)))
    load_bert(model, load_tensors(part_path("minilm-l6")))
    return model.eval().requires_grad_(False), words


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str]) -> Floats:
    """``[N, 384]``: the mean over each text's tokens. Long texts lose their end."""
    model, words = minilm()
    vectors = []
    for first in range(0, len(texts), SENTENCES_TOGETHER):
        ids, mask = words.encode(texts[first : first + SENTENCES_TOGETHER], 128, cut=True)
        weight = mask[..., None].float()
        vectors.append(((model.encode_text(ids, mask).text * weight).sum(1) / weight.sum(1)).numpy())
    return np.concatenate(vectors)
