"""The marks of VQA, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.metrics.vqa import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("The dog.", "dog"),
        ("A two-storey house", "2 storey house"),
        ("it's", "its"),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t", "dont"),
        ("dont", "dont"),
        ("1,000", "1000"),
        ("1,000 (about)", "1000 about"),
        ("2.5", "2.5"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        ("yes!", "yes"),
        ("yes !", "yes"),
        ("t-shirt", "t shirt"),
        ("a-b c-/d", "b c d"),  # the spaces are those of the answer, not those that marks became
        ("u.s.", "us"),
        ("  An   apple\n", "apple"),
        ("another", "another"),
        ("the", ""),
    ],
)
def test_one_form(answer: str, form: str) -> None:
    assert normalize_answer(answer) == form


@given(st.text())
def test_the_form_is_its_own(answer: str) -> None:
    form = normalize_answer(answer)
    assert form == form.lower() and form == form.strip() and "  " not in form


@pytest.mark.parametrize(
    ("agreeing", "mark"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)  # the benchmark's table
def test_ten_people(agreeing: int, mark: float) -> None:
    people = ["two"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("2", people) == pytest.approx(mark)


def test_fewer_people() -> None:
    assert vqa_accuracy("its", ["it's"]) == 1 and vqa_accuracy("no", ["yes"]) == 0
    assert vqa_accuracy("red", ["red", "red"]) == 1
    assert vqa_accuracy("red", ["red", "blue"]) == 0.5
    assert vqa_accuracy("red", ["red"] * 3) == 1
    assert vqa_accuracy("red", []) == 0
