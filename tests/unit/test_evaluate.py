"""Caption metrics on cases small enough to work out by hand."""

import json
import random
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import InputError
from triptych.evaluate.judgments import judgment_correlations, kendall_tau_c
from triptych.metrics.bleu import bleu
from triptych.metrics.captions import score_captions, score_each
from triptych.metrics.cider import CiderD
from triptych.metrics.meteor import meteor
from triptych.metrics.rouge import longest_common_subsequence, rouge_l
from triptych.metrics.tokenize import ptb_tokenize

sentences = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "on", "the", "red", "ball"]), max_size=9)
corpora = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's ball , it isn't his .", "a dog 's ball it is n't his"),
        ("They CAN'T; we cannot, 'tis gonna be", "they ca n't we can not 't is gon na be"),
        ("Mr. Hill of the U.S. sits at 8:25 p.m.", "mr. hill of the u.s. sits at 8:25 p.m."),
        ("No. 5 says no. Jumping", "no. 5 says no jumping"),
        ("A black-and-white T-shirt - $3.50, #3 (new)", "a black-and-white t-shirt $ 3.50 # 3 -lrb- new -rrb-"),
        ("\"Stop!\" she says... 'now' -- why?!", "stop she says now why ?!"),
        ("rock'n'roll at 5 o'clock, the boys' ma'am", "rock 'n' roll at 5 o'clock the boys ma'am"),
        ("and/or 1/2 &amp; B&W a&b", "and/or 1/2 & b&w a & b"),
        ("it’s “smart” — café…", "it 's smart café"),
        ("", ""),
        (" . , ; :! -- ", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert ptb_tokenize(text) == tokens.split()


@settings(deadline=None)
@given(st.text())
def test_tokens_are_lower_case_and_hold_no_space(text: str) -> None:
    for token in ptb_tokenize(text):
        assert token
        assert token == token.lower()
        assert not any(c in token for c in " \t\r\n")


def test_bleu_by_hand() -> None:
    # Three of four words, two of three pairs, one of two triples; the reference is longer by one.
    total, each = bleu([list("abcx")], [[list("abcde")]])
    precisions = np.array([3 / 4, 2 / 3, 1 / 2, 1e-15])
    expected = exp(1 - 5 / 4) * np.cumprod(precisions) ** (1 / np.arange(1, 5))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(each, [expected], rtol=1e-6)


def test_bleu_clips_to_the_most_in_one_reference_and_takes_the_closest_length() -> None:
    total, _ = bleu([["the"] * 4], [[["the", "cat"], ["the", "dog", "the"]]])
    assert total[0] == pytest.approx(2 / 4)  # no penalty: longer than both
    total, _ = bleu([["a"] * 3], [[["a"] * 4, ["a"] * 2]])
    assert total[0] == pytest.approx(1)  # two and four are equally close to three: the shorter counts


def test_bleu_of_the_set_sums_counts_before_dividing() -> None:
    total, each = bleu([["a"], ["b", "b", "b"]], [[["a"]], [["c", "c", "c"]]])
    assert total[0] == pytest.approx(1 / 4)
    np.testing.assert_allclose(each[:, 0], [1, 0], atol=1e-8)


def test_rouge_by_hand() -> None:
    score = rouge_l([list("abcd")], [[list("axbx"), list("bc")]])[0]
    precision, recall = 2 / 4, 1.0
    assert score == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


@settings(deadline=None)
@given(sentences, sentences)
def test_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    length = longest_common_subsequence(a, b)
    assert length == longest_common_subsequence(b, a) <= min(len(a), len(b))
    assert longest_common_subsequence(a, a + b) == len(a)
    assert longest_common_subsequence(a + b, b) == len(b)
    assert length + 1 == longest_common_subsequence([*a, "new"], [*b, "new"])


def test_cider_by_hand() -> None:
    # Words only, each document of one word, so that only the first order counts. "a" is in two of four documents.
    cider = CiderD([[["a"]], [["a"]], [["b"]], [["c"]]])
    same = cider.score_items([["a"], ["b"], ["c"]], [0, 2, 2])
    np.testing.assert_allclose(same, [10 / 4, 10 / 4, 0])
    # "a b" against "b": cosine of the words, nothing of the pairs, one word longer.
    cosine = log(4) ** 2 / (sqrt(log(2) ** 2 + log(4) ** 2) * log(4))
    assert cider.score_items([["a", "b"]], [2])[0] == pytest.approx(10 / 4 * cosine * exp(-1 / 72))
    # Repeating a word does not pay: the product is clipped at the reference's weight, the norm is not.
    assert cider.score_items([["b", "b"]], [2])[0] == pytest.approx(10 / 4 / 2 * exp(-1 / 72))


def test_cider_of_items_is_that_of_the_whole_corpus_and_takes_ids() -> None:
    draw = random.Random(0)
    corpus = [[[draw.randrange(9) for _ in range(draw.randrange(1, 8))] for _ in range(3)] for _ in range(12)]
    candidates = [[draw.randrange(9) for _ in range(6)] for _ in corpus]
    cider = CiderD(corpus)
    whole = cider.score(candidates)
    assert whole.std() > 0
    items = [7, 3, 3, 0]
    np.testing.assert_array_equal(cider.score_items([candidates[i] for i in items], items), whole[items])
    np.testing.assert_array_equal(cider.score(candidates[:3], corpus[:3]), whole[:3])
    words = CiderD([[[str(t) for t in ref] for ref in refs] for refs in corpus])
    np.testing.assert_array_equal(words.score([[str(t) for t in c] for c in candidates]), whole)


@settings(deadline=None)
@given(corpora, st.randoms())
def test_order_of_photos_and_references_does_not_matter(
    corpus: list[tuple[list[str], list[list[str]]]], draw: random.Random
) -> None:
    candidates, references = [c for c, _ in corpus], [r for _, r in corpus]
    order = draw.sample(range(len(corpus)), len(corpus))
    shuffled = [draw.sample(references[i], len(references[i])) for i in order]
    moved = [candidates[i] for i in order]
    np.testing.assert_allclose(bleu(moved, shuffled)[0], bleu(candidates, references)[0])
    np.testing.assert_allclose(rouge_l(moved, shuffled), rouge_l(candidates, references)[order])
    np.testing.assert_allclose(CiderD(shuffled).score(moved), CiderD(references).score(candidates)[order], atol=1e-12)


@settings(deadline=None)
@given(corpora)
def test_scores_stay_in_their_bounds(corpus: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [c for c, _ in corpus], [r for _, r in corpus]
    total, each = bleu(candidates, references)
    for scores, top in (
        (total, 1),
        (each, 1),
        (rouge_l(candidates, references), 1),
        (CiderD(references).score(candidates), 10),
    ):
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert (scores <= top + 1e-9).all()


def test_perfect_and_empty_captions() -> None:
    references = {"x": ["A dog runs on the beach ."], "y": ["Two red balls in a box"], "z": ["He's at the big lake ."]}
    perfect = score_captions({photo: refs[0] for photo, refs in references.items()}, references, meteor=False)
    assert perfect.pop("METEOR") is None
    assert perfect.pop("CIDEr-D") == pytest.approx(10)
    assert list(perfect) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert all(score == pytest.approx(1, abs=1e-6) for score in perfect.values())
    empty = score_captions(dict.fromkeys(references, "."), references, meteor=False)
    assert all(score == pytest.approx(0, abs=1e-9) for metric, score in empty.items() if metric != "METEOR")


def test_meteor_is_none_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert score_captions({"x": "a dog"}, {"x": ["a dog"]})["METEOR"] is None


@pytest.mark.parametrize("references", [{}, {"x": []}])
def test_photo_without_reference_is_refused(references: dict[str, list[str]]) -> None:
    with pytest.raises(InputError, match="'x'"):
        score_captions({"x": "a dog"}, references, meteor=False)


def test_bad_counts_are_refused() -> None:
    with pytest.raises(InputError):
        CiderD([])
    with pytest.raises(InputError, match="2 candidates"):
        CiderD([[["a"]]]).score([["a"], ["b"]])
    with pytest.raises(InputError, match="1 candidates for 2 items"):
        CiderD([[["a"]]]).score_items([["a"]], [0, 0])
    with pytest.raises(InputError, match="reference"):
        CiderD([[["a"]], []]).score([["a"], ["b"]])
    with pytest.raises(InputError):
        score_each([], [])


@pytest.mark.parametrize(
    ("candidates", "references"),
    [
        ({"1": "a dog"}, {"1": "a dog"}),
        ({"1": "a dog", "2": "x"}, {"1": ["a dog"], "2": "x"}),
        ({"1": "a dog"}, {"1": [["a", "dog"]]}),
        ({"1": "a dog"}, {"1": ["a dog", None]}),
        ({"1": ["a", "dog"]}, {"1": ["a dog"]}),
        ({"1": None}, {"1": ["a dog"]}),
    ],
)
def test_a_text_where_a_list_belongs_is_refused(candidates: Any, references: Any) -> None:
    with pytest.raises(InputError, match=r"must be (one text|a list of texts)"):
        score_captions(candidates, references, meteor=False)
    with pytest.raises(InputError):
        score_each([*candidates.values()], [*references.values()], meteor=False)


@pytest.mark.parametrize("metric", [bleu, rouge_l, meteor, lambda c, r: CiderD(r).score(c)])
@pytest.mark.parametrize(
    ("candidates", "references"),
    [(["a dog"], [[["a", "dog"]]]), ([["a", "dog"]], [["a dog"]]), ([["a", "dog"]], ["a dog"])],
)
def test_a_text_where_tokens_belong_is_refused(metric: Any, candidates: Any, references: Any) -> None:
    with pytest.raises(InputError, match="split it with ptb_tokenize"):
        metric(candidates, references)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=2, max_size=60))
def test_tau_c_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores, grades = np.array(pairs).T
    if min(len(set(scores)), len(set(grades))) < 2:
        with pytest.raises(InputError):
            kendall_tau_c(scores, grades)
    else:
        assert kendall_tau_c(scores, grades) == pytest.approx(stats.kendalltau(scores, grades, variant="c").statistic)


def test_judgments_leave_out_a_photos_own_captions(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "caption": "a red dog runs", "own_caption": False, "expert_scores": [4, 4, 3]},
        {"id": "x", "caption": "two people", "own_caption": False, "expert_scores": [1, 1, 1]},
        {"id": "y", "caption": "a big cat", "own_caption": False, "expert_scores": [3, 4, 4]},
    ]
    own = {"id": "y", "caption": "a cat sleeps", "own_caption": True, "expert_scores": [1, 1, 1]}
    references = {"x": ["a red dog runs fast", "a dog"], "y": ["a cat sleeps", "one big cat"]}
    path = tmp_path / "judgments.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    taus = judgment_correlations(path, references, meteor=False)
    assert taus["METEOR"] is None
    assert taus["BLEU-1"] is not None
    assert taus["BLEU-1"] > 0.5
    path.write_text("\n".join(map(json.dumps, [*rows, own])))
    assert judgment_correlations(path, references, meteor=False) == taus
    with pytest.raises(InputError, match=r"judgments\.jsonl"):
        judgment_correlations(path, {"x": references["x"]})
    path.write_text("{}\n")
    with pytest.raises(InputError, match=r"judgments\.jsonl"):
        judgment_correlations(path, references, meteor=False)
