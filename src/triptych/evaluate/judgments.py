"""Agreement of caption metrics with people: Kendall's tau with the expert judgments of Flickr8k (Hodosh et al. 2013)."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from triptych.data import open_dataset
from triptych.errors import InputError
from triptych.metrics.captions import score_each

EXPERTS = "expert-judgments.jsonl"  # beside Flickr8k's photos


def judgment_taus(data: Path) -> dict[str, float | None]:
    """Kendall's tau-c of each metric with Flickr8k's expert judgments, in a file beside its photos. Raises InputError: it is missing."""
    path = (data if data.is_dir() else data.parent) / EXPERTS
    if not path.is_file():
        raise InputError(f"{path} is missing: make it from the expert judgments that come with Flickr8k")
    references = {photo.id: photo.captions for photo in open_dataset(data, "test")}
    taus = judgment_correlations(path, references)
    return {name: None if tau is None else round(tau, 4) for name, tau in taus.items()}


def judgment_correlations(
    path: Path, references: Mapping[str, Sequence[str]], *, meteor: bool = True
) -> dict[str, float | None]:
    """Kendall's tau-c of each sentence-level metric with the experts' scores, -1..1; None for a metric not computed.

    `path` is a JSONL file of judged pairs (`id`, `caption`, `own_caption`, `expert_scores`), `references` the captions
    of each photo by id. As usual for Flickr8k-Expert, pairs of a photo and its own caption are left out, and each of
    the three judgments of a pair counts as an item; document frequencies are over the judged pairs.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if not row["own_caption"]]
        captions = [row["caption"] for row in rows]
        truths = [references[row["id"]] for row in rows]
        judgments = np.array([row["expert_scores"] for row in rows])  # [pairs, experts]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable table of judgments of the photos given ({error!r})") from error
    scores = score_each(captions, truths, meteor=meteor).each
    return {
        metric: None if each is None else kendall_tau_c(np.repeat(each, judgments.shape[1]), judgments.ravel())
        for metric, each in scores.items()
    }


def kendall_tau_c(scores: ArrayLike, grades: ArrayLike) -> float:
    """Stuart's tau-c of scores [n] with grades [n] of few levels: 2 (concordant - discordant) / (n^2 (m - 1) / m).

    m is the smaller number of distinct values. Raises InputError: all scores or all grades are equal.
    """
    x, y = np.asarray(scores), np.asarray(grades)
    levels = [np.sort(x[y == level]) for level in np.unique(y)]
    m = min(len(levels), len(np.unique(x)))
    if m < 2:
        raise InputError("Kendall's tau needs at least two distinct scores and two distinct grades")
    surplus = 0
    for lower, higher in combinations(levels, 2):
        concordant = np.searchsorted(lower, higher, side="left").sum()
        discordant = (len(lower) - np.searchsorted(lower, higher, side="right")).sum()
        surplus += int(concordant - discordant)
    return 2 * surplus * m / (len(x) ** 2 * (m - 1))
