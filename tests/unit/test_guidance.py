"""What guides the search for words: against an enumeration of all texts, in batches, and from a consensus to a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_generate import EOS, TinyLM, enumerate_texts, inputs_of, search, token_logprobs, tokens_of
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks

from triptych.generate import Guidance, generate, stream
from triptych.io import images
from triptych.tasks import Blip2Tasks, FlamingoTasks
from triptych.tasks.choices import GREY
from triptych.tasks.reranking import Reranking
from triptych.text.consensus import FILE
from triptych.text.vocabulary import SPECIALS, WordVocabulary

TOKENS = np.array([3, 1])


def guidance_of(seed: int, batch: int = 1) -> Guidance:
    return Guidance(TOKENS, np.random.default_rng(seed).normal(0, 2, (batch, 2)).astype(np.float32))


def added_to(guidance: Guidance, row: int, tokens: Sequence[int]) -> float:
    weights = dict(zip(guidance.tokens.tolist(), guidance.weights[row].tolist(), strict=True))
    return sum(weights.get(token, 0.0) for token in tokens)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("refill", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_wide_beams_find_the_best_of_all_texts_with_guidance(seed: int, refill: bool, length_penalty: float) -> None:
    model, one, guidance = TinyLM(4, seed, 1.0), inputs_of(seed), guidance_of(seed)
    scored = [
        (tokens, (total + added_to(guidance, 0, tokens)) / len(tokens) ** length_penalty)
        for tokens, total in enumerate_texts(model, one, 4, 4)
    ]
    best, score = max(scored, key=lambda text: text[1])
    settings = search(max_new_tokens=4, beams=64, length_penalty=length_penalty, refill=refill, early_stopping="never")
    [[found]] = generate(model, one, settings, guidance=guidance)
    assert tokens_of(found) == best and found.score(length_penalty) == pytest.approx(score, abs=1e-4)
    assert found.logprobs == pytest.approx(token_logprobs(model, one, best), abs=1e-4)
    assert found.guidance == pytest.approx(added_to(guidance, 0, best), abs=1e-4)


MODES: list[dict[str, Any]] = [
    {},
    {"beams": 3, "n_best": 3},
    {"beams": 3, "refill": True, "length_penalty": 1.0},
    {"once": lambda token: frozenset({token} & {3})},
]


@pytest.mark.parametrize("mode", MODES)
def test_each_input_has_its_own_guidance(mode: dict[str, Any]) -> None:
    differing = 0
    for seed in range(8):
        model, inputs, guidance = TinyLM(7, seed, 1.5), inputs_of(seed, 4), guidance_of(seed, 4)
        together = generate(model, inputs, search(**mode), guidance=guidance)
        for row, found in enumerate(together):
            own = Guidance(TOKENS, guidance.weights[row : row + 1])
            [alone] = generate(model, inputs[row : row + 1], search(**mode), guidance=own)
            assert [tokens_of(h) for h in found] == [tokens_of(h) for h in alone]
            for h in found:
                assert h.guidance == pytest.approx(added_to(guidance, row, tokens_of(h)), abs=1e-4)
            [plain] = generate(model, inputs[row : row + 1], search(**mode))
            assert plain[0].guidance == 0
            differing += tokens_of(found[0]) != tokens_of(plain[0])
    assert differing > 8


def test_guidance_never_chooses_a_token_that_may_not_follow() -> None:
    model, guidance = TinyLM(7, 0, -9.0), Guidance(np.array([2]), np.array([[50.0]], np.float32))
    [[found]] = generate(model, inputs_of(0), search(banned=frozenset({2})), guidance=guidance)
    assert 2 not in found.ids
    [[found]] = generate(
        model, inputs_of(0), search(beams=2, once=lambda token: frozenset({token} & {2})), guidance=guidance
    )
    assert found.ids.count(2) == 1


def test_a_guided_stream_is_the_guided_greedy_text() -> None:
    model, one, guidance = TinyLM(7, 5, 0.0), inputs_of(5), guidance_of(2)
    [[h]] = generate(model, one, search(), guidance=guidance)
    assert tuple(token.id for token in stream(model, one, search(), guidance)) == h.ids != ()
    assert EOS not in h.ids


class Expects:
    """A consensus that wants ``word`` in the captions of dark photos alone."""

    def __init__(self, word: str) -> None:
        self.words = (word, "of-several-tokens")
        self.columns = {word: 0, "of-several-tokens": 1}

    def expected_words(self, pooled: np.ndarray) -> np.ndarray:
        return np.array([[99.0, 99.0], [0.0, 0.0]], np.float32)[: len(pooled)]

    def agreement(self, pooled: np.ndarray, captions: list[str]) -> np.ndarray:
        return np.zeros((len(pooled), len(captions)), np.float32)

    def presence_logits(self, pooled: np.ndarray, things: list[str]) -> np.ndarray:
        return np.zeros((len(pooled), len(things)), np.float32)


def expecting(tasks: FlamingoTasks | Blip2Tasks, word: str, folder: Path) -> FlamingoTasks | Blip2Tasks:
    """The same model with a consensus that wants a word."""
    tasks.consensus_file, tasks.__dict__["consensus"] = folder / FILE, Expects(word)
    return tasks


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_a_caption_says_the_word_that_is_expected(build: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: FlamingoTasks | Blip2Tasks = build()
    tokenizer = tasks.spec.tokenizer
    assert tokenizer is not None
    photos = [GREY, Image.new("RGB", (64, 48), "white")]
    plain = tasks.caption(photos, beams=2)
    mark = next(tokenizer.encode(c)[0] for c in "zyxw" if c not in plain[0].text.lower())
    monkeypatch.setattr(tasks, "word_token", {"dog": mark}.get)
    guided = expecting(tasks, "dog", tmp_path).caption(photos, beams=2)
    letter = tokenizer.decode([mark])
    assert letter in guided[0].text.lower() and guided[1].text == plain[1].text
    assert tasks.caption(photos, beams=2, rerank=False)[0].text == plain[0].text
    assert letter in "".join(tasks.stream(photos[0]))


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_a_picture_is_read_once(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts of a model look at it: an address may show another picture the next time."""
    photo, read = tmp_path / "photo.png", list[Any]()
    Image.new("RGB", (64, 48), "white").save(photo)
    read_source = images.read_source
    monkeypatch.setattr(images, "read_source", lambda source: read.append(source) or read_source(source))
    tasks = expecting(build(), "dog", tmp_path)
    tasks.caption(photo, explain=True)
    for question in ("What is he doing?", "Is there a dog?", "Is the dog running?"):
        tasks.ask(photo, question)
    assert read == [photo] * 4


@pytest.mark.parametrize("build", [flamingo_tasks, blip2_tasks])
def test_the_recipe_has_as_many_texts_as_were_asked_for(build: Any, tmp_path: Path) -> None:
    answer = expecting(build(), "dog", tmp_path).caption(GREY, beams=4, n_best=2)
    assert answer.recipe is not None and answer.recipe.search is not None
    assert (answer.recipe.search.beams, answer.recipe.search.n_best, len(answer.alternatives)) == (4, 2, 1)


def test_words_of_one_token_guide() -> None:
    class Model(Reranking):
        consensus = Expects("dog")  # type: ignore[assignment]
        vocabulary = WordVocabulary((*SPECIALS, "a", "dog"))

        def word_token(self, word: str) -> int | None:
            return self.vocabulary.word_token(word)

    guidance = Model().guidance(np.zeros((2, 3), np.float32))
    assert guidance is not None and guidance.tokens.tolist() == [5]
    assert guidance.weights.tolist() == [[99.0], [0.0]]
