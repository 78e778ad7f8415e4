"""A warm start without the language model: visual tokens learn to say which words a picture's captions have.

The language model costs ten times what reads the pictures for it, and until it attends to the visual tokens its loss teaches them
little. So each visual token v_r (of Flamingo's resampler, of BLIP-2's Q-Former) first proposes words, p(w | picture) = mean over tokens
r of softmax_w(s e_w . H v_r + b_w), with e_w the frozen language model's embeddings. Rarer words count more; the classes that few-shot
tests ask about do not count. Then H becomes the way into the language model: the values of Flamingo's gated blocks, whose opening gates
let in words that the picture suggests; BLIP-2's projection, so that a soft prompt begins as a list of such words. No paper of the three
does this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.data import Photo
from triptych.data.english.caption_facts import FORMS
from triptych.data.interleaved import ALL_HELD_OUT
from triptych.nn.decoder import Decoder
from triptych.systems.flamingo import Flamingo
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import plain_caption, split_words
from triptych.train.loop import fit
from triptych.train.recipe import LoopSettings, recipe_with
from triptych.train.sampling import DataMix
from triptych.train.trainer import ParameterGroups

RARE = 5  # a word must occur in so many pictures' captions
COMMON_SHARE = 0.25  # and in no larger share of them
BATCH, RATE = 64, 1e-3

Cells = Callable[[Sequence[int], int], Tensor]  # (places of pictures, a seed) -> [P, L, Dv]


class CaptionWords:
    """The words of captions as tokens of the language model: ``ids [W]``; ``targets[i]`` is picture i's distribution over them."""

    def __init__(self, photos: Sequence[Photo], tokenizer: TextTokenizer) -> None:
        spoken = [Counter(word for text in photo.captions for word in set(split_words(text))) for photo in photos]
        spoken = [Counter({word: n for word, n in counts.items() if not held_out(word)}) for counts in spoken]
        token = {word: tokenizer.encode(f" {word}")[0] for counts in spoken for word in counts}
        pictures = Counter(i for counts in spoken for i in {token[word] for word in counts})  # that have each token
        kept = sorted(i for i, count in pictures.items() if RARE <= count <= max(RARE, COMMON_SHARE * len(photos)))
        self.ids = torch.tensor(kept, dtype=torch.long)
        place = {i: n for n, i in enumerate(kept)}
        self.targets = torch.zeros(len(photos), len(kept))
        for row, counts in enumerate(spoken):
            for word, count in counts.items():
                if (i := token[word]) in place:
                    self.targets[row, place[i]] += count * math.log(len(photos) / pictures[i])
        self.targets /= self.targets.sum(1, keepdim=True).clamp_min(1e-6)


def held_out(word: str) -> bool:
    """Whether it names a class that few-shot tests ask about."""
    return word in FORMS and FORMS[word].name in ALL_HELD_OUT


class PictureReader(NamedTuple):
    """What makes visual tokens: ``read``: ``image_features [P, L, Dv]`` -> ``[P, R, dim]``, by what is ``trained``."""

    trained: nn.Module
    read: Callable[[Tensor], Tensor]
    dim: int


class WordObjective(nn.Module):
    """-sum_w t_w log p(w | picture), the mean over pictures."""

    def __init__(self, reader: PictureReader, embeddings: Tensor, words: CaptionWords) -> None:
        """``embeddings [W, E]``: of the words in the language model."""
        super().__init__()
        self.trained, self.read = reader.trained, reader.read
        self.head = nn.Linear(reader.dim, embeddings.shape[1], bias=False)
        self.bias = nn.Parameter(words.targets.mean(0).clamp_min(1e-6).log())
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.directions: Tensor
        directions = embeddings.detach().float()
        self.register_buffer("directions", F.normalize(directions - directions.mean(0), dim=-1), persistent=False)

    def forward(self, image_features: Tensor, targets: Tensor) -> Tensor:
        proposed = F.normalize(self.head(self.read(image_features)), dim=-1)  # [P, R, E]
        logprobs = (self.scale * proposed @ self.directions.T + self.bias).float().log_softmax(-1)
        mixture = logprobs.logsumexp(1) - math.log(proposed.shape[1])
        return -(targets * mixture).sum(-1).mean()


class WordTrainer:
    """A ``train.trainer.Trainer`` of the warm start. Nothing is validated: the last state is what counts."""

    metric = "words"

    def __init__(
        self, objective: WordObjective, words: CaptionWords, cells: Cells, identity: Mapping[str, Any], rate: float
    ) -> None:
        """``rate``: the learning rate of what proposes the words as a share of the head's."""
        self.objective, self.words, self.cells, self.rate = objective, words, cells, rate
        self.mix = DataMix((len(words.targets),))
        self.known = {"words": words.ids.tolist(), **identity}

    def identity(self) -> Mapping[str, Any]:
        return self.known

    def prepare(self, run: Path, new: bool) -> None:
        """Nothing comes before the first step."""

    def parameter_groups(self) -> ParameterGroups:
        trained = [p for p in self.objective.trained.parameters() if p.requires_grad]
        head = [*self.objective.head.parameters(), self.objective.bias, self.objective.scale]
        return [{"params": trained, "lr_scale": self.rate}, {"params": head}]

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        return self.cells(rows, seed), self.words.targets[list(rows)]

    def validate(self) -> dict[str, float]:
        return {}

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        """The state of the run is all that is kept."""


def learn_words(
    run: Path,
    objective: WordObjective,
    words: CaptionWords,
    cells: Cells,
    loop: LoopSettings,
    identity: Mapping[str, Any],
    rate: float = 1.0,
) -> None:
    """Train ``objective`` in a run of its own, which is resumed like any other. ``rate``: see ``WordTrainer``."""
    loop = replace(loop, batch_size=min(BATCH, len(words.targets)), accumulation=1, patience=loop.epochs)
    loop = recipe_with(loop, {"learning_rate": RATE})
    fit(run, WordTrainer(objective, words, cells, identity, rate), loop)


@torch.no_grad()
def begin_as_words(projection: nn.Linear, head: Tensor, query_output: Tensor, embeddings: Tensor) -> None:
    """Begin BLIP-2's projection as ``head [E, D]``, so that soft prompts stand around the mean of the words' ``embeddings [W, E]`` as far
    off as words do. ``query_output [B, Q, D]`` is what it reads."""
    mean = embeddings.mean(0)
    size = (embeddings - mean).square().mean().sqrt() / (query_output @ head.T).square().mean().sqrt()
    projection.weight.copy_(size * head)
    projection.bias.copy_(mean)


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
    x, context = lm.embed_inputs(text)
    sizes = []
    for block in lm.blocks:
        sizes.append(float(x[:, 1:].square().mean().sqrt()))  # the first token is much larger than all others
        x = block(x, context)
    return sizes


def caption_text(photos: Sequence[Photo], tokenizer: TextTokenizer, length: int = 8, count: int = 32) -> Tensor:
    """Beginnings of captions, ``[B, T]``."""
    texts = (tokenizer.encode(f" {plain_caption(photo.captions[0])}")[:length] for photo in photos)
    rows = [ids for ids in texts if len(ids) == length][:count]
    return torch.tensor(rows or [[0] * length])
