"""Texts of several callers, written in joint steps: they join, leave and change places, and each is what it would be alone."""

import weakref

import numpy as np
import pytest
from tiny_onnx import language_model, tiny_decoder, weights_of

from triptych.engines.onnx import joint
from triptych.engines.onnx.joint import JointText
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.text import OnnxLanguageModel, TextCache
from triptych.errors import InputError


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> OnnxLanguageModel:
    folder = tmp_path_factory.mktemp("lm")
    decoder = tiny_decoder()
    LanguageGraph(decoder.config, weights_of(decoder), "fp32").write().save(folder)
    return language_model(decoder, folder)


class Text:
    """A text being written: its cache, and a copy of it that is written alone."""

    def __init__(self, lm: OnnxLanguageModel, seed: int, beams: int = 1, length: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        prompt = lm.embed(self.rng.integers(0, 97, length))
        self.joint, self.alone = (lm.start(1, 8) for _ in range(2))
        for cache in (self.joint, self.alone):
            lm.read(cache, 0, prompt)
        self.reorder(np.zeros((1, beams), np.int64))

    def reorder(self, rows: np.ndarray) -> None:
        self.joint, self.alone = self.joint.reorder(rows), self.alone.reorder(rows)

    def change_places(self) -> None:
        count = len(self.joint.lengths)
        self.reorder(self.rng.integers(0, count, (1, count)))

    def ids(self) -> np.ndarray:
        return self.rng.integers(0, 97, len(self.joint.lengths))


def step(lm: OnnxLanguageModel, steps: JointText, texts: list[Text]) -> None:
    """One joint step, compared with what each text gives alone."""
    ids = [text.ids() for text in texts]
    results = steps.step(ids, [text.joint for text in texts])
    for text, own, (logits, cache) in zip(texts, ids, results, strict=True):
        assert cache is text.joint
        np.testing.assert_allclose(logits, lm.step(own, text.alone), atol=1e-4)
        np.testing.assert_array_equal(cache.lengths, text.alone.lengths)


@pytest.mark.parametrize("seed", range(6))
def test_texts_join_leave_and_change_places(lm: OnnxLanguageModel, seed: int) -> None:
    rng, steps, texts = np.random.default_rng(seed), JointText(lm), list[Text]()
    for turn in range(30):
        while len(texts) < 2 or (len(texts) < 7 and rng.random() < 0.4):
            texts.append(Text(lm, 100 * turn + len(texts), int(rng.integers(1, 4)), int(rng.integers(1, 30))))
        if rng.random() < 0.4:
            texts.pop(int(rng.integers(len(texts))))
        for text in texts:
            if rng.random() < 0.5:
                text.change_places()
        stepped = [text for text in texts if rng.random() < 0.9]  # the others are late
        if stepped:
            step(lm, steps, [stepped[i] for i in rng.permutation(len(stepped))])


def test_only_what_must_be_is_copied(lm: OnnxLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[TextCache] = []
    move = joint.SharedBuffer._move

    def count(self: joint.SharedBuffer, cache: TextCache, rows: range) -> None:
        moved.append(cache)
        move(self, cache, rows)

    monkeypatch.setattr(joint.SharedBuffer, "_move", count)
    steps, texts = JointText(lm), [Text(lm, seed) for seed in range(4)]
    step(lm, steps, texts)
    assert len(moved) == 4
    moved.clear()
    step(lm, steps, texts)
    assert moved == []
    del texts[1]
    step(lm, steps, texts)
    assert moved == [texts[-1].joint]  # the last fills the gap
    moved.clear()
    texts.append(Text(lm, 9))
    step(lm, steps, texts)
    assert moved == [texts[-1].joint]


def test_a_cache_that_is_kept_elsewhere_is_left_alone(lm: OnnxLanguageModel) -> None:
    steps, texts = JointText(lm), [Text(lm, seed) for seed in range(3)]
    step(lm, steps, texts)
    kept = texts.pop(0)
    step(lm, steps, [*texts, Text(lm, 7), Text(lm, 8)])
    ids = kept.ids()
    np.testing.assert_allclose(lm.step(ids, kept.joint), lm.step(ids, kept.alone), atol=1e-4)


def test_long_texts_are_written_by_themselves(lm: OnnxLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "LONG", 20)
    steps, texts = JointText(lm), [Text(lm, 1), Text(lm, 2, length=40), Text(lm, 3, beams=2)]
    for _ in range(20):  # the others become long, too
        step(lm, steps, texts)
    assert texts[1].joint.buffer.base is None  # it was never copied into a shared one


def test_a_text_that_becomes_too_long_says_so_and_changes_nothing(lm: OnnxLanguageModel) -> None:
    steps, texts = JointText(lm), [Text(lm, 1), Text(lm, 2, length=120)]
    with pytest.raises(InputError, match="121 tokens"):
        steps.step([text.ids() for text in texts], [text.joint for text in texts])
    step(lm, steps, texts[:1])


def test_nothing_keeps_a_text_that_has_ended(lm: OnnxLanguageModel) -> None:
    steps, texts = JointText(lm), [Text(lm, seed) for seed in range(3)]
    step(lm, steps, texts)
    gone = weakref.ref(texts.pop().joint)
    assert gone() is None
