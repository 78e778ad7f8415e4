"""A warm start for Flamingo without its language model: visual tokens learn to say which words a picture's captions have.

The language model costs ten times what the resampler does, and through gates that are still shut it teaches the resampler little. So
each visual token first proposes words, p(w | picture) = mean over tokens r of softmax_w(s e_w . H v_r + b_w), with e_w the frozen
language model's embeddings. Rarer words count more; the classes that few-shot tests ask about do not count. Then each gated block
begins with values and an output that add up to H, as large as the text's own vectors there: an opening gate lets in words that the
picture suggests. No paper of the three does this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data import Photo
from triptych.data.caption_facts import FORMS
from triptych.data.interleaved import ALL_HELD_OUT
from triptych.decoder import Decoder
from triptych.flamingo import Flamingo
from triptych.tokenizers import TextTokenizer, plain_caption, split_words

RARE = 5  # a word must occur in so many pictures' captions
COMMON = 0.25  # and in no larger share of them


class CaptionWords:
    """The words of captions as tokens of the language model: ``ids [W]``; ``targets[i]`` is picture i's distribution over them."""

    def __init__(self, photos: Sequence[Photo], tokenizer: TextTokenizer) -> None:
        spoken = [Counter(word for text in photo.captions for word in set(split_words(text))) for photo in photos]
        spoken = [Counter({word: n for word, n in counts.items() if not held_out(word)}) for counts in spoken]
        token = {word: tokenizer.encode(f" {word}")[0] for counts in spoken for word in counts}
        seen = Counter(i for counts in spoken for i in {token[word] for word in counts})
        kept = sorted(i for i, count in seen.items() if RARE <= count <= max(RARE, COMMON * len(photos)))
        self.ids = torch.tensor(kept, dtype=torch.long)
        place = {i: n for n, i in enumerate(kept)}
        self.targets = torch.zeros(len(photos), len(kept))
        for row, counts in enumerate(spoken):
            for word, count in counts.items():
                if (i := token[word]) in place:
                    self.targets[row, place[i]] += count * math.log(len(photos) / seen[i])
        self.targets /= self.targets.sum(1, keepdim=True).clamp_min(1e-6)


def held_out(word: str) -> bool:
    """Whether it names a class that few-shot tests ask about."""
    return word in FORMS and FORMS[word].name in ALL_HELD_OUT


class WordObjective(nn.Module):
    """-sum_w t_w log p(w | picture), the mean over pictures."""

    def __init__(self, model: Flamingo, words: CaptionWords) -> None:
        super().__init__()
        self.resampler = model.resampler
        self.head = nn.Linear(model.config.visual_dim, model.lm.config.dim, bias=False)
        self.bias = nn.Parameter(words.targets.mean(0).clamp_min(1e-6).log())
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.embeddings: Tensor
        directions = model.lm.project_in(model.lm.embedding.weight[words.ids]).detach().float()
        self.register_buffer("embeddings", F.normalize(directions - directions.mean(0), dim=-1), persistent=False)

    def forward(self, image_features: Tensor, numbers: Tensor, targets: Tensor) -> Tensor:
        proposed = F.normalize(self.head(self.resampler(image_features, numbers)), dim=-1)  # [P, R, D]
        logprobs = (self.scale * proposed @ self.embeddings.T + self.bias).float().log_softmax(-1)
        mixture = logprobs.logsumexp(1) - math.log(proposed.shape[1])
        return -(targets * mixture).sum(-1).mean()


@torch.no_grad()
def speak_words(model: Flamingo, head: Tensor, visual_tokens: Tensor, text: Tensor) -> None:
    """Begin each gated block's attention as ``head [D, Dv]``, as large as the residual stream of ``text [B, T]`` there.

    The heads' values take the singular directions of ``head`` in order; what is left of them stays as it was.
    """
    said = float((visual_tokens @ head.T).square().mean().sqrt())
    sizes = residual_sizes(model.lm, text)
    u, s, v = torch.linalg.svd(head.float(), full_matrices=False)
    for i, block in enumerate(model.xattn):
        attention: Any = block.attention
        root = (s * sizes[(i + 1) * model.config.every - 1] / said).sqrt()
        width = min(len(s), attention.value.out_features)
        attention.value.weight[:width] = root[:width, None] * v[:width]
        attention.out.weight[:, :width] = u[:, :width] * root[:width]


def residual_sizes(lm: Decoder, text: Tensor) -> list[float]:
    """The root mean square of what enters each block."""
    x, place = lm.begin(text)
    sizes = []
    for block in lm.blocks:
        sizes.append(float(x[:, 1:].square().mean().sqrt()))  # the first token is much larger than all others
        x = block(x, place)
    return sizes


def caption_text(photos: Sequence[Photo], tokenizer: TextTokenizer, length: int = 8, count: int = 32) -> Tensor:
    """Beginnings of captions, ``[B, T]``."""
    texts = (tokenizer.encode(f" {plain_caption(photo.captions[0])}")[:length] for photo in photos)
    rows = [ids for ids in texts if len(ids) == length][:count]
    return torch.tensor(rows or [[0] * length])
