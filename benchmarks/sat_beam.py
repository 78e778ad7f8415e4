"""Beam search of Show, Attend and Tell: this package against a plain search in the way of the PyTorch tutorial.

``python -m benchmarks.sat_beam WHICH`` measures one process's share of the table and prints it as JSON; WHICH is ``both``
(times, interleaved), ``ours``, ``plain`` or ``idle`` (once each, for the process's peak memory; ``idle`` only builds the input).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.generate import Search, generate
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import CaptionDecoder
from triptych.text.vocabulary import BOS, EOS

TUTORIAL = ShowAttendTellConfig.tutorial(9490)


@dataclass(frozen=True)
class Case:
    """What is captioned: sizes, and the bias of ``<end>`` that makes captions about a dozen words long."""

    config: ShowAttendTellConfig = TUTORIAL
    photos: int = 32
    cells: int = 196
    beams: int = 5
    max_words: int = 50
    end_bias: float = -10.0


def add_clock(decoder: CaptionDecoder, end_bias: float) -> None:
    """Make one unit of the LSTM a clock that raises the logit of ``<end>`` word by word.

    As in a trained model, random weights then write captions of about the same length, none of them empty.
    """
    lstm, n = decoder.lstm, decoder.config.hidden_dim
    with torch.no_grad():
        for parameter in (lstm.weight_ih, lstm.weight_hh, lstm.bias_ih, lstm.bias_hh):
            parameter[::n] = 0
        lstm.bias_ih[::n] = torch.tensor([10, 10, 0.08, 10])  # the gates are open: the cell grows by 0.08 a word
        for first in (decoder.init_h, decoder.init_c):
            first.weight[0], first.bias[0] = 0, 0
        if decoder.config.output == "deep":  # the clock passes through the first unit of the output layer
            decoder.output_h.weight[0], decoder.output_h.bias[0] = 0, 0
            decoder.output_z.weight[0], decoder.embedding.weight[:, 0] = 0, 0
            decoder.output_h.weight[0, 0] = 1
        decoder.output.weight[EOS, 0], decoder.output.bias[EOS] = 20, end_bias


def build(case: Case, seed: int = 0) -> tuple[CaptionDecoder, Tensor]:
    """Random weights, spread enough that the words depend on the photo, and features ``[B, L, D]``, none negative."""
    torch.manual_seed(seed)
    decoder = CaptionDecoder(case.config).eval().requires_grad_(False)
    decoder.embedding.weight.mul_(10)
    decoder.output.weight.mul_(5)
    add_clock(decoder, case.end_bias)
    photos = torch.randn(case.photos, 1, case.config.feature_dim)
    return decoder, (photos + torch.randn(case.photos, case.cells, case.config.feature_dim)).relu()


def ours(decoder: CaptionDecoder, features: Tensor, case: Case) -> list[tuple[int, ...]]:
    search = Search(eos=frozenset({EOS}), beams=case.beams, max_new_tokens=case.max_words)
    return [hypotheses[0].ids for hypotheses in generate(decoder, features, search)]


@torch.inference_mode()
def plain(decoder: CaptionDecoder, features: Tensor, case: Case) -> list[tuple[int, ...]]:
    return [plain_search(decoder, photo[None], case) for photo in features]


def plain_search(decoder: CaptionDecoder, photo: Tensor, case: Case) -> tuple[int, ...]:
    """Beam search over one photo ``[1, L, D]``, written as the tutorial writes it.

    The grid is repeated for each beam and projected again at every step; a hypothesis that ends gives up its beam. Where the
    tutorial fails, with beams still alive after the last step, they count as they are.
    """
    k, vocabulary = case.beams, case.config.vocab_size
    grid = photo.expand(k, -1, -1)
    words = torch.full((k,), BOS)
    texts: list[tuple[int, ...]] = [()] * k
    totals = torch.zeros(k, 1)
    ended: list[tuple[float, tuple[int, ...]]] = []
    mean = grid.mean(1)
    h, c = decoder.init_h(mean), decoder.init_c(mean)
    for step in range(case.max_words):
        attention = decoder.attention
        scores = attention.score(F.relu(attention.annotation_proj(grid) + attention.hidden_proj(h)[:, None])).squeeze(2)
        context = (grid * scores.softmax(1)[..., None]).sum(1)
        context = torch.sigmoid(decoder.beta(h)) * context
        h, c = decoder.lstm(torch.cat([decoder.embedding(words), context], 1), (h, c))
        candidates = totals + F.log_softmax(decoder.output(h), 1)
        best, index = (candidates[0] if step == 0 else candidates.flatten()).topk(k)
        parents, words = index // vocabulary, index % vocabulary
        texts = [(*texts[p], w) for p, w in zip(parents.tolist(), words.tolist(), strict=True)]
        ended += [(s, t[:-1]) for s, t in zip(best.tolist(), texts, strict=True) if t[-1] == EOS]
        alive = [i for i, text in enumerate(texts) if text[-1] != EOS]
        k = len(alive)
        if k == 0:
            break
        grid, h, c = grid[parents[alive]], h[parents[alive]], c[parents[alive]]
        words, totals = words[alive], best[alive, None]
        texts = [texts[i] for i in alive]
    ended += zip(totals.squeeze(1).tolist() if k else [], texts, strict=False)
    return max(ended, key=lambda scored: scored[0])[1]


def compare(case: Case, repeats: int) -> dict[str, float]:
    """Seconds of each for the whole batch, the median of interleaved repeats.

    Raises:
        RuntimeError: the two write different captions.
    """
    decoder, features = build(case)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    captions = {}
    ours(decoder, features, case)  # warm-up
    for _ in range(repeats):
        for name, search in (("ours", ours), ("plain", plain)):
            started = time.perf_counter()
            captions[name] = search(decoder, features, case)
            seconds[name].append(time.perf_counter() - started)
    same = sum(a == b for a, b in zip(*captions.values(), strict=True))
    if same < case.photos:
        raise RuntimeError(f"only {same} of {case.photos} captions agree between the two searches")
    return {
        "photos": case.photos,
        "words": sum(map(len, captions["ours"])) / case.photos,
        "ours_seconds": median(seconds["ours"]),
        "plain_seconds": median(seconds["plain"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("both", "ours", "plain", "idle"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.which == "both":
        print(json.dumps(compare(Case(), arguments.repeats)))
        return
    decoder, features = build(Case())
    if arguments.which != "idle":
        {"ours": ours, "plain": plain}[arguments.which](decoder, features, Case())


if __name__ == "__main__":
    main()
