"""What captions agree on: fitted in closed form, kept in a checkpoint, and used to choose among beams."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from test_average import save_tiny
from tiny_blip2 import blip2_tasks
from tiny_flamingo import flamingo_tasks
from typer.testing import CliRunner

from triptych.checkpoints.format import copy_checkpoint
from triptych.checkpoints.locate import load_config
from triptych.cli import app
from triptych.data import Photo
from triptych.errors import InputError
from triptych.generate import Hypothesis
from triptych.models import encoders
from triptych.nn.cnn import EfficientNetLite
from triptych.tasks import Blip2Tasks, FlamingoTasks, SatTasks, load
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.reranking import OF_ANSWERS, OF_CAPTIONS
from triptych.text.consensus import FILE, LABEL_SCALE, Consensus, QuantizedLinear, read_consensus, with_labels
from triptych.train.consensus import fit_consensus

KINDS = ("dog", "cat", "horse", "boat")


def photo_of(kind: str, captions: tuple[str, ...]) -> Photo:
    return Photo(kind, "train", captions, {}, Path(f"{kind}.png"))


@pytest.fixture(scope="module")
def fitted() -> Consensus:
    """Of photos whose features say which of four things they show."""
    rng = np.random.default_rng(0)
    photos, features = [], []
    for n in range(80):
        kind = n % 4
        photos.append(photo_of(KINDS[kind], (f"a {KINDS[kind]} outside", f"the {KINDS[kind]}, here", "Something else")))
        features.append(np.eye(4)[kind] + 0.1 * rng.normal(size=4))
    return fit_consensus(np.array(features, np.float32), photos)


def test_a_photo_agrees_with_the_caption_of_its_thing(fitted: Consensus) -> None:
    assert set(fitted.words) == {*KINDS, "a", "outside", "the", "here", "something", "else"}
    assert fitted.rarity[fitted.columns["a"]] == 0 < fitted.rarity[fitted.columns["dog"]]
    captions = [f"A {kind} outside." for kind in KINDS]
    agreement = fitted.agreement(np.eye(4, dtype=np.float32), captions)
    assert agreement.shape == (4, 4) and (np.diag(agreement) > 0.8).all()
    assert (agreement[~np.eye(4, dtype=bool)] < 0).all()
    np.testing.assert_allclose(np.linalg.norm(fitted.vectors(captions), axis=1), 1, atol=1e-5)
    columns = [fitted.columns["dog"], fitted.columns["outside"]]
    around_zero = np.zeros(len(fitted.words))
    around_zero[columns] = fitted.rarity[columns] / np.linalg.norm(fitted.rarity[columns])
    around_mean = around_zero - fitted.mean
    np.testing.assert_allclose(fitted.vectors(captions)[0], around_mean / np.linalg.norm(around_mean), atol=1e-5)


def test_what_is_expected_of_a_photo_is_computed_once(fitted: Consensus) -> None:
    photos = np.eye(4, dtype=np.float32) + 0.25
    first = fitted.expected(photos)
    assert fitted.expected(photos.copy()) is first and not first.flags.writeable
    np.testing.assert_allclose(fitted.expected(photos[:1])[0], first[0], atol=1e-6)
    many = fitted.expected(np.tile(photos, (5, 1)))
    np.testing.assert_allclose(many[:4], first, atol=1e-6)


def test_rare_words_are_left_out_and_common_ones_needed() -> None:
    photos = [photo_of("x", ("one two",))] * 5 + [photo_of("x", ("three",))] * 4
    assert fit_consensus(np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), photos).words == (
        "one",
        "two",
    )
    with pytest.raises(InputError, match="no word is in the captions of 5 photos"):
        fit_consensus(np.zeros((1, 3), np.float32), photos[:1])


def test_it_is_read_as_it_was_written(fitted: Consensus, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(fitted.to_bytes())
    read = read_consensus(tmp_path / FILE)
    features = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    assert read.words == fitted.words
    np.testing.assert_array_equal(read.agreement(features, ["a dog"]), fitted.agreement(features, ["a dog"]))


def test_labels_are_roots_of_the_classifiers_probabilities_behind_the_features() -> None:
    rng = np.random.default_rng(3)
    weight, bias, pooled = rng.normal(size=(5, 4)), rng.normal(size=5), rng.normal(size=(3, 4)).astype(np.float32)
    logits = pooled @ weight.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    extended = with_labels(pooled, QuantizedLinear.of(weight, bias))
    np.testing.assert_array_equal(extended[:, :4], pooled)
    np.testing.assert_allclose((extended[:, 4:] / LABEL_SCALE) ** 2, probabilities, atol=0.01)


def test_labels_tell_apart_what_features_add_up_to(tmp_path: Path) -> None:
    """Two things whose features cancel each other out in a linear map, but not in the classes' probabilities."""
    rng = np.random.default_rng(0)
    features = rng.choice([-1.0, 1.0], (200, 2)).astype(np.float32)
    photos = [photo_of("x", (f"a {'dog' if a == b else 'cat'} here",)) for a, b in features]
    classifier = QuantizedLinear.of(np.array([[4.0, 4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, -4.0]]), np.zeros(4))
    blind, labelled = fit_consensus(features, photos), fit_consensus(features, photos, classifier)
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]], np.float32)
    assert (labelled.agreement(corners, ["a dog"])[:, 0] > 0.9).tolist() == [True, True, False, False]
    assert (blind.agreement(corners, ["a dog"])[:, 0] > 0.9).tolist() != [True, True, False, False]
    assert (labelled.expected_words(corners)[:, labelled.columns["dog"]] > 0.4).tolist() == [True, True, False, False]
    (tmp_path / FILE).write_bytes(labelled.to_bytes())
    read = read_consensus(tmp_path / FILE)
    np.testing.assert_array_equal(read.expected(corners), labelled.expected(corners))


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: replace(c, rarity=c.rarity[1:]),
        lambda c: replace(c, mean=c.mean[:, None]),
        lambda c: replace(c, mean=np.full_like(c.mean, np.inf)),
        lambda c: replace(c, words=()),
        lambda c: replace(c, regression=replace(c.regression, weight=c.regression.weight[:, 0])),
        lambda c: replace(c, regression=replace(c.regression, weight=c.regression.weight.astype(np.float32))),
        lambda c: replace(c, regression=replace(c.regression, bias=np.full_like(c.regression.bias, np.nan))),
        lambda c: replace(c, regression=replace(c.regression, scale=c.regression.scale[1:])),
        lambda c: replace(
            c, classifier=QuantizedLinear.of(np.ones((2, 4)), np.zeros(2))
        ),  # with it, there must be 6 features
    ],
)
def test_arrays_that_do_not_fit_are_refused(fitted: Consensus, damage: Callable[[Consensus], Consensus]) -> None:
    with pytest.raises(InputError, match="consensus"):
        damage(fitted)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x80\x04]q\x00."])
def test_files_that_are_no_consensus_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"consensus\.npz cannot be read"):
        read_consensus(tmp_path / FILE)


def test_rank_weighs_the_mean_logprob_and_the_gains() -> None:
    short, long = Hypothesis((1,), (-1.0, -1.0), True), Hypothesis((1, 2, 3), (-0.5,) * 4, True)
    rank = OF_CAPTIONS.rank
    assert rank([short, long], np.zeros(2, np.float32), 2) == [long, short]
    assert rank([short, long], np.array([0.13, 0.0], np.float32), 1) == [short]  # 4 x 0.13 > 0.5
    assert rank([short, long], np.array([0.12, 0.0], np.float32), 1) == [long]


def test_rank_weighs_the_whole_logprob_of_answers() -> None:
    likely, agreeing = Hypothesis((1, 2), (-0.5,) * 3, True), Hypothesis((3,), (-1.0, -1.2), True)  # -1.5 and -2.2
    rank = OF_ANSWERS.rank
    assert rank([likely, agreeing], np.array([0.0, 0.11], np.float32), 1) == [likely]
    assert rank([likely, agreeing], np.array([0.0, 0.12], np.float32), 2) == [agreeing, likely]  # 6 x 0.12 > 0.7


def test_a_length_penalty_that_is_given_counts_in_the_choice() -> None:
    short, long = Hypothesis((1,), (-1.0, -1.0), True), Hypothesis((1, 2, 3), (-0.7,) * 4, True)  # -2.0 and -2.8
    none = np.zeros(2, np.float32)
    assert OF_CAPTIONS.with_settings({}).rank([short, long], none, 1) == [long]
    assert OF_CAPTIONS.with_settings({"length_penalty": 0.0}).rank([short, long], none, 1) == [short]
    assert OF_ANSWERS.with_settings({"length_penalty": 1.0}).rank([short, long], none, 1) == [long]


class LastBeam:
    """A consensus that prefers the last beam of each photo, and no word. ``calls``: the texts of each photo."""

    columns: ClassVar[dict[str, int]] = {}
    words = ()

    def __init__(self) -> None:
        self.calls = list[list[str]]()

    def expected_words(self, pooled: np.ndarray) -> np.ndarray:
        return np.zeros((len(pooled), 0), np.float32)

    def agreement(self, pooled: np.ndarray, captions: list[str]) -> np.ndarray:
        assert pooled.ndim == 2 and np.isfinite(pooled).all()
        self.calls.append(captions)
        return np.tile(np.arange(len(captions), dtype=np.float32) * 1e3, (len(pooled), 1))


def give_last_beam(tasks: SatTasks | FlamingoTasks | Blip2Tasks, folder: Path) -> LastBeam:
    tasks.consensus_file, tasks.__dict__["consensus"] = folder / FILE, (last := LastBeam())
    return last


def sat_tasks(folder: Path) -> SatTasks:
    tasks = load(save_tiny(folder / "sat", EfficientNetLite(cut=22, image_size=64)), device="cpu")
    assert isinstance(tasks, SatTasks)
    return tasks


@pytest.fixture(params=["sat", "flamingo", "blip2"])
def tasks(request: pytest.FixtureRequest, tmp_path: Path) -> SatTasks | FlamingoTasks | Blip2Tasks:
    return {"sat": lambda: sat_tasks(tmp_path), "flamingo": flamingo_tasks, "blip2": blip2_tasks}[request.param]()


def test_the_beam_that_agrees_with_the_photo_is_the_caption(
    tasks: SatTasks | FlamingoTasks | Blip2Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 48), "red")]
    plain = tasks.caption(images, beams=4, n_best=4)
    texts = [[answer.text, *(text for text, _ in answer.alternatives)] for answer in plain]
    last = give_last_beam(tasks, tmp_path)
    ranked = tasks.caption(images, beams=4, n_best=2)
    assert len(last.calls) == 2
    for answer, before in zip(ranked, texts, strict=True):
        assert [answer.text, *(text for text, _ in answer.alternatives)] == before[::-1][:2]
    assert tasks.caption(images[0], beams=4).text == ranked[0].text
    last.calls.clear()
    assert [a.text for a in tasks.caption(images, beams=4, rerank=False)] == [before[0] for before in texts]
    tasks.caption(images[0], temperature=0.5, seed=1)
    assert not last.calls


@pytest.mark.parametrize("tasks", ["flamingo", "blip2"], indirect=True)
def test_the_beam_that_agrees_with_the_photo_is_the_answer(tasks: FlamingoTasks | Blip2Tasks, tmp_path: Path) -> None:
    image, other = Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 48), "red")
    question, number = "What color is the dog?", "How many dogs are there?"
    plain = tasks.ask(image, question, beams=4, n_best=4)
    counted = tasks.ask(image, number).text
    last = give_last_beam(tasks, tmp_path)
    answer = tasks.ask(image, question)
    assert answer.text == plain.alternatives[-1][0] != plain.text
    assert len(last.calls[0]) == 4
    assert "".join(tasks.stream(image, question)) == answer.text
    last.calls.clear()
    assert tasks.ask(image, number).text == counted
    tasks.ask(image, question, temperature=0.5, seed=1)
    assert not last.calls
    assert [each.text for each in tasks.ask([image, image], [number, question])] == [counted, answer.text]
    assert not tasks.reranks_answer(PictureQuestion([image, other], question), {})


def test_the_score_of_matching_counts_agreement(tmp_path: Path) -> None:
    tasks, images, texts = (
        blip2_tasks(),
        [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 48), "blue")],
        ["cat", "dog"],
    )
    assert tasks.spec.contrast_weight == 7.0  # as much as the cosine's
    before = tasks.match(images, texts)

    class Agreement:
        def expected(self, pooled: np.ndarray) -> np.ndarray:
            assert pooled.shape[0] == 2
            return np.eye(2, dtype=np.float32)

        def vectors(self, captions: list[str]) -> np.ndarray:
            assert captions == texts
            return np.array([[0.1, 0.3], [0.2, 0.4]], np.float32)

    tasks.consensus_file = tmp_path / FILE
    tasks.__dict__["consensus"] = Agreement()
    for n, (plain, counted) in enumerate(zip(before, tasks.match(images, texts), strict=True)):
        assert counted.rerank == pytest.approx(plain.rerank + tasks.spec.contrast_weight * 0.1 * (n + 1), abs=1e-4)
        assert replace(counted, rerank=0.0) == replace(plain, rerank=0.0)


def test_a_text_without_a_known_word_agrees_with_nothing(fitted: Consensus) -> None:
    assert not fitted.agreement(np.eye(4, dtype=np.float32), ["xyz", ""]).any()


def test_presence_is_what_least_squares_expects() -> None:
    """Photos of two features, one of which says that there is a dog."""
    rng = np.random.default_rng(0)
    there = rng.random(400) < 0.25
    photos = [
        photo_of(str(n), (f"a {'dog' if dog else 'wall'} here", f"two {'dogs' if dog else 'walls'}", "a man"))
        for n, dog in enumerate(there)
    ]
    features = np.stack([there, rng.random(400)], 1).astype(np.float32)
    fitted = fit_consensus(features, photos)
    with_dog, without_dog = np.array([[1, 0.5], [0, 0.5]], np.float32)
    names = ["dog", "dogs", "dog here", "animal"]
    logits = fitted.presence_logits(np.stack([with_dog, without_dog]), names)
    assert (logits[0] > 2).all() and (logits[1] < -4).all()
    person, *unknown = fitted.presence_logits(without_dog[None], ["person", "dog xyz", ""])[0]
    assert person > 5 and np.isnan(unknown).all()


def test_train_consensus_adds_it_to_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "sat", EfficientNetLite(cut=22, image_size=64))
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for n in range(12):
        Image.new("RGB", (32, 32), ("red", "blue")[n % 2]).save(data / f"{n}.png")
        split = "val" if n == 11 else "train"
        lines.append(f"{n}.png,{split},a {('red', 'blue')[n % 2]} wall")
    (data / "metadata.csv").write_text("\n".join(["file_name,split,caption", *lines]) + "\n")
    weights = (folder / "triptych.safetensors").read_bytes()
    command = ["train", "consensus", str(folder), "--data", str(data), "--json"]
    classifier = QuantizedLinear.of(np.ones((3, EfficientNetLite.dim)), np.zeros(3))
    monkeypatch.setattr(encoders, "published_classifier", {EfficientNetLite.name: classifier}.get)
    assert CliRunner().invoke(app, command).exit_code == 0
    fitted = read_consensus(folder / FILE)
    assert fitted.classifier is not None and fitted.classifier.weight.shape == (3, EfficientNetLite.dim)
    ran = CliRunner().invoke(app, [*command, "--no-labels"])
    assert ran.exit_code == 0, ran.output
    assert '"photos": 11, "words": 4' in ran.output
    assert (folder / "triptych.safetensors").read_bytes() == weights
    model = load(folder, device="cpu")
    assert model.consensus is not None and model.consensus.classifier is None
    assert model.consensus.words == ("a", "blue", "red", "wall")
    photos = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    assert (model.consensus.agreement(model.pooled(photos), ["red", "blue"]) > 0.5).tolist() == [
        [True, False],
        [False, True],
    ]
    (folder / FILE).write_bytes(b"another")
    with pytest.raises(InputError, match=r"consensus\.npz is damaged or of another checkpoint"):
        load(folder, device="cpu")


def test_shipped_models_are_not_changed_in_place() -> None:
    ran = CliRunner().invoke(app, ["train", "consensus", "sat", "--data", "nowhere"])
    assert isinstance(ran.exception, InputError) and "--out DIR" in str(ran.exception)


def test_a_copy_has_all_files_and_replaces_its_source(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "sat", EfficientNetLite(cut=22, image_size=64))
    before = load_config(folder)
    copy_checkpoint(folder, tmp_path / "copy", {"note.txt": b"hello"})
    after = load_config(tmp_path / "copy")
    assert {**after.files} == {**before.files, "note.txt": after.files["note.txt"]}
    assert after.model == before.model and after.weights == before.weights
    copy_checkpoint(tmp_path / "copy", tmp_path / "copy", {"note.txt": b"bye"})
    assert (tmp_path / "copy" / "note.txt").read_bytes() == b"bye"
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted([*after.files, "config.json"])
