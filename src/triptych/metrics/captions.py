"""The caption metrics of the field, all at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError
from triptych.metrics.bleu import bleu
from triptych.metrics.cider import CiderD
from triptych.metrics.meteor import meteor as meteor_scores
from triptych.metrics.rouge import rouge_l
from triptych.metrics.tokenize import ptb_tokenize


@dataclass(frozen=True)
class CaptionScores:
    """Scores by metric: of the whole set (`total`) and of each caption (`each`, [captions]); None if not computed."""

    total: dict[str, float | None]
    each: dict[str, NDArray[np.float64] | None]


def score_captions(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, meteor: bool = True
) -> dict[str, float | None]:
    """Scores of a set of captions by metric: "BLEU-1".."BLEU-4", "METEOR", "ROUGE-L" (0..1) and "CIDEr-D" (1.0 = 100).

    Keys are photos. Document frequencies are those of the references of the scored photos. METEOR is None where it is
    not asked for, or where Java or `pycocoevalcap` is missing. Raises InputError for a photo without reference, and for a
    text where a list of references belongs.
    """
    missing = [photo for photo in candidates if not references.get(photo)]
    if missing:
        raise InputError(
            f"no reference caption for {missing[0]!r} ({len(missing)} such photos): give at least one each"
        )
    return score_each(list(candidates.values()), [references[photo] for photo in candidates], meteor=meteor).total


def score_each(candidates: Sequence[str], references: Sequence[Sequence[str]], *, meteor: bool = True) -> CaptionScores:
    """The same for raw captions in a row, also caption by caption; `references[i]` are those of `candidates[i]`."""
    if not candidates:
        raise InputError("no captions to score")
    _check_texts(candidates, references)
    hypotheses = [ptb_tokenize(caption) for caption in candidates]
    truths = [[ptb_tokenize(caption) for caption in captions] for captions in references]
    bleu_total, bleu_each = bleu(hypotheses, truths)
    rouge_each = rouge_l(hypotheses, truths)
    cider_each = CiderD(truths).score(hypotheses)
    meteor_total, meteor_each = (meteor_scores(hypotheses, truths) if meteor else None) or (None, None)
    names = [f"BLEU-{n}" for n in range(1, 5)]
    return CaptionScores(
        total={
            **dict(zip(names, bleu_total.tolist(), strict=True)),
            "METEOR": meteor_total,
            "ROUGE-L": float(rouge_each.mean()),
            "CIDEr-D": float(cider_each.mean()),
        },
        each={
            **dict(zip(names, bleu_each.T, strict=True)),
            "METEOR": meteor_each,
            "ROUGE-L": rouge_each,
            "CIDEr-D": cider_each,
        },
    )


def _check_texts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """A text is a sequence of letters, so that one in the place of a list would be scored letter by letter."""
    for candidate in candidates:
        if not isinstance(candidate, str):
            raise InputError(f"a caption to score must be one text, found {type(candidate).__name__}")
    for texts in references:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the references of a photo must be a list of texts, found {texts!r:.60}")
