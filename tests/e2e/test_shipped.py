"""What ships: the weights on the bundled photos, the report of the demo, the notebook, and the figures of README and model cards."""

import contextlib
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from typer.testing import CliRunner

import triptych
from triptych import demo
from triptych.checkpoints.locate import BUNDLED, load_config
from triptych.cli import app
from triptych.data import open_dataset
from triptych.data.english.pairs import make_pairs
from triptych.demo import EXAMPLES
from triptych.evaluate.captioning import caption_metrics, captions_by_id
from triptych.evaluate.choice import pair_metrics
from triptych.tasks import Blip2Tasks, FlamingoTasks, SatTasks

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.parts, pytest.mark.usefixtures("load_once")]


@pytest.fixture(scope="module")
def blip2(load_once: None) -> Blip2Tasks:
    return triptych.load("blip2", device="cpu")


@pytest.fixture(scope="module")
def flamingo(load_once: None) -> FlamingoTasks:
    return triptych.load("flamingo", device="cpu")


@pytest.fixture(scope="module")
def sat(load_once: None) -> SatTasks:
    return triptych.load("sat", device="cpu")


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        ("riders", {"horse", "horses", "beach", "ocean", "water"}),
        ("bmx", {"bike", "bicycle", "skateboard", "skateboarder", "ramp", "trick", "biker"}),
    ],
)
def test_the_bundled_photos_are_recognised(sat: SatTasks, photo: str, words: set[str]) -> None:
    assert words & set(sat.caption(EXAMPLES / f"{photo}.jpg").tokens)


def test_the_demo_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"baseball.jpg", "dog.jpg"}  # one of each kind of entry takes a third of the time
    credits = [credit for credit in demo.bundled_photos() if credit["file"] in files]
    monkeypatch.setattr(demo, "bundled_photos", lambda: credits)
    monkeypatch.setattr(demo, "QUESTIONS", demo.QUESTIONS[1:])
    monkeypatch.setattr(demo, "PAIRS", demo.PAIRS[:1])
    monkeypatch.setattr(demo, "CHAT_QUESTIONS", demo.CHAT_QUESTIONS[:1])
    monkeypatch.setattr(demo, "GROUPS", ((tuple(sorted(files)), demo.GROUPS[1][1]),))
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0
    report = tmp_path / "new" / "report.html"
    assert result.stdout.splitlines()[-1] == f"report: {report.resolve()}"
    page = report.read_text(encoding="utf-8")
    for credit in credits:
        assert credit["photo"] in page
        assert credit["licence"] in page
        for system in ("sat", "flamingo", "blip2"):
            figure = tmp_path / "new" / f"{Path(credit['file']).stem}-{system}.png"
            assert figure.stat().st_size > 10_000
    for credit in json.loads((EXAMPLES / "drawings" / "credits.json").read_text(encoding="utf-8")):
        assert f"{credit['source']} ({credit['licence']})" in page
    assert not re.search(r'(?:src|srcset|data)="https?:', page)


def test_the_pictures_of_the_demo_are_bundled() -> None:
    files = {credit["file"] for credit in demo.bundled_photos()}
    drawings = {path.name for path in (EXAMPLES / "drawings").iterdir()}
    assert all(set(pair) <= files for pair, _ in demo.PAIRS) and {file for file, _ in demo.QUESTIONS} <= files
    assert demo.CHAT_PHOTO in files and all(set(group) <= files | drawings for group, _ in demo.GROUPS)


@pytest.mark.data
def test_the_first_test_photos_score_as_the_card(sat: SatTasks, flickr8k: Path) -> None:
    """On 60 photos the score may stray from that of all 500, but a broken search, encoder or vocabulary falls far below."""
    photos = open_dataset(flickr8k, "test")[:60]
    record = caption_metrics(captions_by_id(triptych.load("sat"), photos, {}), photos, meteor=False)
    card = sat.engine.sat.config.card.test
    assert record["CIDEr-D"] == pytest.approx(card["CIDEr-D"] / 100, abs=0.15)
    assert record["BLEU-4"] == pytest.approx(card["BLEU-4"] / 100, abs=0.06)


TEXTS = {
    "riders": "two people riding horses on the beach",
    "baseball": "a baseball game",
    "cyclist": "a man riding a bike",
    "tennis": "a man playing tennis",
}


def test_photos_and_texts_find_one_another(blip2: Blip2Tasks) -> None:
    matches = blip2.match([EXAMPLES / f"{name}.jpg" for name in TEXTS], list(TEXTS.values()))
    cosine = np.array([m.itc_cosine for m in matches]).reshape(len(TEXTS), len(TEXTS))
    assert (cosine.argmax(0) == np.arange(len(TEXTS))).sum() >= 3
    assert (cosine.argmax(1) == np.arange(len(TEXTS))).sum() >= 3


def test_two_photos_are_told_apart_in_both_orders(blip2: Blip2Tasks) -> None:
    dog, game = EXAMPLES / "dog.jpg", EXAMPLES / "baseball.jpg"
    question = "Which photo shows a baseball game?"
    assert [blip2.compare(dog, game, question).text, blip2.compare(game, dog, question).text] == ["right", "left"]


@pytest.mark.data
def test_pairs_of_test_photos_are_told_apart_as_in_the_card(blip2: Blip2Tasks, flickr8k: Path) -> None:
    photos = open_dataset(flickr8k, "test")
    record = pair_metrics(triptych.load("blip2"), photos, make_pairs(photos, 20, seed=0))
    card = blip2.engine.blip2.config.card.test
    for name in ("matching", "language model"):
        assert record[name]["accuracy"] == pytest.approx(card[f"two photos, {name}"], abs=12)
        assert record[name]["position: left chosen"] == pytest.approx(50, abs=20)


def test_flamingo_has_learnt_to_look(flamingo: FlamingoTasks) -> None:
    gates = flamingo.engine.gates()
    assert max(abs(attention) for attention, _ in gates) > 0.2 and all(abs(ffw) > 0.2 for _, ffw in gates)
    photos = [EXAMPLES / f"{name}.jpg" for name in ("riders", "baseball", "coast")]
    captions = [answer.text for answer in flamingo.caption(photos, beams=1, rerank=False)]
    assert len(set(captions)) == 3, captions


def test_flamingo_takes_made_up_names_from_one_example_of_each(flamingo: FlamingoTasks) -> None:
    """The claim of the page of the lecture, whose command runs on the other engine."""
    drawings = EXAMPLES / "drawings"
    shots = [(drawings / "horse-noto.png", "a dax"), (drawings / "owl-noto.png", "a blicket")]
    answer = flamingo.complete(drawings / "horse-openmoji.png", shots, "This is", ["a dax", "a blicket"])
    assert answer.text == "a dax"


def test_flamingo_is_asked_again_at_the_price_of_the_question(flamingo: FlamingoTasks) -> None:
    """Behind eight examples only the new tokens are read."""
    shots = [(EXAMPLES / f"{name}.jpg", name) for name in (*TEXTS, *TEXTS)]
    flamingo.complete(EXAMPLES / "dog.jpg", shots, max_new_tokens=1)
    read = []
    handle = flamingo.engine.model.xattn[0].register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    flamingo.complete(EXAMPLES / "coast.jpg", shots, max_new_tokens=1)
    handle.remove()
    assert read == [1]


def test_the_notebook_runs() -> None:
    """The cells of "Where three systems look", one after the other."""
    notebook = nbformat.read(ROOT / "docs" / "where-three-systems-look.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store it without outputs"
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                exec(compile(cell.source, f"cell {number}", "exec"), names)
    assert [line.split()[0] for line in printed.getvalue().splitlines()] == ["sat", "flamingo", "blip2"] * 3


def card_figures(name: str) -> dict[str, str]:
    """The test figures that a shipped checkpoint carries, as the pages write them: in percent, one decimal."""
    figures = load_config(BUNDLED / name).card.test
    return {key: f"{value:.1f}" if name == "sat" else str(value) for key, value in figures.items() if key != "photos"}


@pytest.mark.parametrize("name", ["sat", "flamingo", "blip2"])
def test_the_model_card_has_the_figures_of_the_weights(name: str) -> None:
    card = (ROOT / "docs" / "model-cards" / f"{name}.md").read_text(encoding="utf-8")
    for key, figure in card_figures(name).items():
        assert figure in card, key


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
@pytest.mark.parametrize("name", ["sat", "flamingo", "blip2"])
def test_the_readme_has_the_captions_of_the_weights(page: str, name: str) -> None:
    (row,) = [
        line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith(f"| [`{name}`]")
    ]
    figures = card_figures(name)
    captions = {
        key: figure
        for key, figure in figures.items()
        if re.fullmatch(r"(captions )?(CIDEr-D|BLEU-4)(, 0 examples)?", key)
    }
    assert captions and all(f"| {figure} |" in row for figure in captions.values()), (row, captions)
