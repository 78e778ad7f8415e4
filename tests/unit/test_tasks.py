"""Using a model: batches equal single photos, evidence, what is remembered, clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych import InputError, load, tasks
from triptych.checkpoints.config import Card
from triptych.models import SatModel, sat_search, save_sat
from triptych.nn.cnn import EfficientNetLite
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import EOS, SPECIALS, WordVocabulary


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> tasks.SatTasks:
    torch.manual_seed(1)
    words = WordVocabulary((*SPECIALS, *["a", "dog", "'s", "ball", "runs", "on", "sand"]))
    config = ShowAttendTellConfig(len(words), 1280, embed_dim=16, hidden_dim=16, attention_dim=16)
    model = ShowAttendTell(config, EfficientNetLite(cut=22, image_size=128))
    for parameter in model.decoder.parameters():
        parameter.data *= 4  # far from even, so that photos differ
    model.decoder.output.bias.data[EOS] = -3
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_sat(folder, SatModel.new(model, words, sat_search(beams=3, max_new_tokens=7), whole_encoder=True), Card.of({}))
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((64, 48)) for _ in range(4)]


def test_a_batch_answers_as_its_items(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    for settings in ({}, {"beams": 1}, {"temperature": 1.0, "beams": 1, "seed": 3}):
        together = captioner.caption(photos, **settings)
        alone = [captioner.caption(photo, **settings) for photo in photos]
        assert [a.text for a in together] == [a.text for a in alone]
        assert [a.logprob for a in together] == pytest.approx([a.logprob for a in alone], abs=1e-4)


def test_evidence_is_the_attention_of_the_words_written(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    answer = captioner.caption(photos[0], explain=True)
    assert answer.evidence is not None
    assert answer.evidence.words == answer.tokens
    assert answer.evidence.maps.shape == (len(answer.tokens), 1, 4, 4)
    assert answer.evidence.maps.sum((1, 2, 3)) == pytest.approx(1, abs=1e-5)
    # The same attention, taken while decoding greedily along the same words.
    decoder = captioner.engine.model.decoder
    state = decoder.start(captioner.engine.read(captioner.encode(photos[:1])), 1)
    ids = [1, *(captioner.spec.vocabulary.words.index(word) for word in answer.tokens)]
    for t, word in enumerate(ids[:-1]):
        step = decoder.advance(decoder.word_gates(decoder.embedding(torch.tensor([[word]]))), state)
        state = state._replace(h=step.h, c=step.c)
        assert answer.evidence.maps[t, 0].ravel() == pytest.approx(step.alpha[0, 0].numpy(), abs=1e-5)


def test_the_log_probability_is_that_of_the_words_and_the_end(
    captioner: tasks.SatTasks, photos: list[Image.Image]
) -> None:
    """Against teacher forcing over the words, then the end, with the special words left out."""
    drawn = (captioner.caption(photos[1], temperature=1.0, seed=seed, max_new_tokens=30) for seed in range(50))
    answer = next(a for a in drawn if 0 < len(a.tokens) < 30)  # one that has ended
    ids = [captioner.spec.vocabulary.words.index(word) for word in answer.tokens]
    maps = torch.stack(captioner.encode(photos[1:2]))
    logits = captioner.engine.model(maps, torch.tensor([[[1, *ids]]])).logits[0, 0]
    logits[:, [0, 1, 3]] = -torch.inf
    logprobs = logits.log_softmax(-1)[range(len(ids) + 1), [*ids, EOS]]
    assert answer.logprobs == pytest.approx(logprobs[:-1].tolist(), abs=1e-4)
    assert answer.logprob == pytest.approx(logprobs.sum().item(), abs=1e-3)


def test_a_temperature_samples_although_the_model_searches_by_default(
    captioner: tasks.SatTasks, photos: list[Image.Image]
) -> None:
    texts = {captioner.caption(photos[1], temperature=1.0, seed=seed).text for seed in range(8)}
    assert len(texts) > 1
    with pytest.raises(InputError, match="beams"):
        captioner.caption(photos[1], temperature=1.0, beams=3)


def test_alternatives_are_other_texts_and_less_likely(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    answer = captioner.caption(photos[2], n_best=3)
    assert len({answer.text, *(text for text, _ in answer.alternatives)}) == 3
    assert [answer.logprob, *(p for _, p in answer.alternatives)] == sorted(
        [answer.logprob, *(p for _, p in answer.alternatives)], reverse=True
    )


def test_streaming_writes_the_greedy_caption(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    words = list(captioner.stream(photos[0]))
    greedy = captioner.caption(photos[0], beams=1)
    assert tuple(word.strip() for word in words) == greedy.tokens
    assert "".join(words) == captioner.spec.vocabulary.join(captioner.spec.vocabulary.encode(greedy.text))


def test_captions_their_words_and_streams_have_the_right_articles(
    captioner: tasks.SatTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capitals stand for what is corrected."""
    monkeypatch.setattr(WordVocabulary, "correct_articles", lambda self, words: map(str.upper, words))
    answer = captioner.caption(photos[0], beams=1, explain=True)
    assert answer.text == answer.text.upper() != answer.text.lower()
    assert answer.evidence is not None and answer.evidence.words == answer.tokens
    assert "".join(captioner.stream(photos[0])) == answer.text.strip(".")
    assert all(word == word.upper() for word in answer.tokens)


def test_a_photo_is_encoded_once(
    captioner: tasks.SatTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (first,) = captioner.encode(photos[3:])
    monkeypatch.setattr(captioner.engine, "encode", None)
    photos[3].save(tmp_path / "same.png")
    (again,) = captioner.encode([tmp_path / "same.png"])
    assert again is first  # by content, whatever it is read from
    with pytest.raises(TypeError):
        captioner.encode([photos[3].rotate(90)])


def test_what_is_remembered_is_bounded(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    (features,) = captioner.encode(photos[:1])
    memory = tasks.photos.PhotoMemory(captioner.engine, 2 * (features.nbytes + 1000))
    together = memory([*photos, photos[0]])
    assert together[0] is together[-1] and len(memory.features) == 2
    for photo, alone in zip(photos, together, strict=False):
        torch.testing.assert_close(memory([photo])[0], alone, atol=1e-5, rtol=1e-4)


def test_no_photos_no_answers(captioner: tasks.SatTasks) -> None:
    assert captioner.caption([]) == []


def test_an_unknown_setting_is_named(captioner: tasks.SatTasks, photos: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="beam_count"):
        captioner.caption(photos[0], beam_count=3)
    with pytest.raises(InputError, match="unknown model 'sta'"):
        load("sta")
