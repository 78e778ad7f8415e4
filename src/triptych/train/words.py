"""A warm start without the language model: visual tokens learn to predict the words of a picture's captions.

The language model costs ten times as much as the parts that read pictures for it, and until it attends to the visual tokens its loss
teaches them little. So each visual token v_r (of Flamingo's resampler or BLIP-2's Q-Former) first predicts words:
p(w | picture) = mean over tokens r of softmax_w(s e_w . H v_r + b_w), with e_w the frozen language model's embeddings. Rarer words
count more; classes of few-shot tests do not count. Then H initialises the path into the language model: the values of Flamingo's gated
blocks, so that opening gates let in words of the picture, or BLIP-2's projection, so that a soft prompt starts as a list of such words.
None of the three papers does this.
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

MIN_PICTURES = 5  # whose captions have a word, for it to count
MAX_SHARE = 0.25  # of the pictures
BATCH, RATE = 64, 1e-3

Cells = Callable[[Sequence[int], int], Tensor]  # (numbers of pictures, a seed) -> [P, L, Dv]


class CaptionWords:
    """The words of captions as tokens of the language model: ``ids [W]``; ``targets[i]`` is picture i's distribution over them."""

    def __init__(self, photos: Sequence[Photo], tokenizer: TextTokenizer) -> None:
        words = [Counter(word for text in photo.captions for word in set(split_words(text))) for photo in photos]
        words = [Counter({word: n for word, n in counts.items() if not held_out(word)}) for counts in words]
        token = {word: tokenizer.encode(f" {word}")[0] for counts in words for word in counts}
        pictures = Counter(i for counts in words for i in {token[word] for word in counts})  # with each token
        most = max(MIN_PICTURES, MAX_SHARE * len(photos))
        kept = sorted(i for i, count in pictures.items() if MIN_PICTURES <= count <= most)
        self.ids = torch.tensor(kept, dtype=torch.long)
        column = {i: n for n, i in enumerate(kept)}
        self.targets = torch.zeros(len(photos), len(kept))
        for row, counts in enumerate(words):
            for word, count in counts.items():
                if (i := token[word]) in column:
                    self.targets[row, column[i]] += count * math.log(len(photos) / pictures[i])
        self.targets /= self.targets.sum(1, keepdim=True).clamp_min(1e-6)


def held_out(word: str) -> bool:
    """Whether a word names a class of the few-shot tests."""
    return word in FORMS and FORMS[word].name in ALL_HELD_OUT


class PictureReader(NamedTuple):
    """The part that makes visual tokens. ``read``: ``image_features [P, L, Dv]`` -> ``[P, R, dim]``; ``trained``: its parameters."""

    trained: nn.Module
    read: Callable[[Tensor], Tensor]
    dim: int


class WordObjective(nn.Module):
    """-sum_w t_w log p(w | picture), the mean over pictures."""

    def __init__(self, reader: PictureReader, embeddings: Tensor, words: CaptionWords) -> None:
        """``embeddings [W, E]``: the language model's, of the words."""
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
    """A ``train.trainer.Trainer`` for the warm start. There is no validation; the last state is used."""

    metric = "words"

    def __init__(
        self, objective: WordObjective, words: CaptionWords, cells: Cells, identity: Mapping[str, Any], rate: float
    ) -> None:
        """``rate``: the learning rate of the part that makes visual tokens, relative to the head's."""
        self.objective, self.words, self.cells, self.rate = objective, words, cells, rate
        self.mix = DataMix((len(words.targets),))
        self.known = {"words": words.ids.tolist(), **identity}

    def identity(self) -> Mapping[str, Any]:
        return self.known

    def prepare(self, run: Path, new: bool) -> None:
        """Nothing to do."""

    def parameter_groups(self) -> ParameterGroups:
        trained = [p for p in self.objective.trained.parameters() if p.requires_grad]
        head = [*self.objective.head.parameters(), self.objective.bias, self.objective.scale]
        return [{"params": trained, "lr_scale": self.rate}, {"params": head}]

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
        return self.cells(rows, seed), self.words.targets[list(rows)]

    def validate(self) -> dict[str, float]:
        return {}

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        """Nothing to do: the state of the run is enough."""


def learn_words(
    run: Path,
    objective: WordObjective,
    words: CaptionWords,
    cells: Cells,
    loop: LoopSettings,
    identity: Mapping[str, Any],
    rate: float = 1.0,
) -> None:
    """Train ``objective`` in its own run, which can be resumed like any other. ``rate``: see ``WordTrainer``."""
    loop = replace(loop, batch_size=min(BATCH, len(words.targets)), accumulation=1, patience=loop.epochs)
    loop = recipe_with(loop, {"learning_rate": RATE})
    fit(run, WordTrainer(objective, words, cells, identity, rate), loop)


@torch.no_grad()
def initialise_projection(projection: nn.Linear, head: Tensor, query_output: Tensor, embeddings: Tensor) -> None:
    """Initialise BLIP-2's projection with ``head [E, D]``, scaled so that soft prompts are spread around the mean of the words'
    ``embeddings [W, E]`` as far as words are. ``query_output [B, Q, D]``: inputs of the projection."""
    mean = embeddings.mean(0)
    size = (embeddings - mean).square().mean().sqrt() / (query_output @ head.T).square().mean().sqrt()
    projection.weight.copy_(size * head)
    projection.bias.copy_(mean)


@torch.no_grad()
def initialise_gated_blocks(model: Flamingo, head: Tensor, visual_tokens: Tensor, text: Tensor) -> None:
    """Initialise each gated block's attention with ``head [D, Dv]``, scaled to the residual stream of ``text [B, T]`` at that block.

    The heads' values get the singular directions of ``head`` in order; remaining ones keep their initial weights.
    """
    proposed = float((visual_tokens @ head.T).square().mean().sqrt())
    sizes = residual_sizes(model.lm, text)
    u, s, v = torch.linalg.svd(head.float(), full_matrices=False)
    for i, block in enumerate(model.xattn):
        attention: Any = block.attention
        root = (s * sizes[(i + 1) * model.config.every - 1] / proposed).sqrt()
        width = min(len(s), attention.value.out_features)
        attention.value.weight[:width] = root[:width, None] * v[:width]
        attention.out.weight[:, :width] = u[:, :width] * root[:width]


def residual_sizes(lm: Decoder, text: Tensor) -> list[float]:
    """The root mean square of each block's input."""
    x, context = lm.embed_inputs(text)
    sizes = []
    for block in lm.blocks:
        sizes.append(float(x[:, 1:].square().mean().sqrt()))  # the first token's is much larger than all others
        x = block(x, context)
    return sizes


def caption_text(photos: Sequence[Photo], tokenizer: TextTokenizer, length: int = 8, count: int = 32) -> Tensor:
    """The first tokens of captions, ``[B, T]``."""
    texts = (tokenizer.encode(f" {plain_caption(photo.captions[0])}")[:length] for photo in photos)
    rows = [ids for ids in texts if len(ids) == length][:count]
    return torch.tensor(rows or [[0] * length])
