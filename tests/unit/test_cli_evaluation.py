"""``triptych eval``: damaged photos are named, left out and counted; what cannot be measured is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import run, tiny  # noqa: F401  (fixtures)
from tiny_blip2 import blip2_tasks

from triptych import tasks
from triptych.tasks import Answer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        split = "train" if i < 3 else "test"
        rows += [{"file_name": f"{i}.png", "caption": f"a dog runs {n}", "split": split} for n in ("here", "there")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return tmp_path


@pytest.fixture(autouse=True)
def quick_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the Java program, which takes seconds to start; ``test_metrics_coco.py`` runs it."""
    monkeypatch.setattr(
        "triptych.metrics.captions.meteor_scores", lambda candidates, _: (0.25, np.full(len(candidates), 0.25))
    )


def test_a_damaged_photo_is_named_left_out_and_counted(run, tiny: Path, data: Path) -> None:  # noqa: F811
    found = run("eval", "caption", "--data", data, "--model", tiny, "--json")
    record = json.loads(found.out)
    assert found.code == 2 and record["photos"] == 2 and 0 <= record["BLEU-1"] <= 1
    assert record["METEOR"] == 0.25
    assert "4.png" in found.err and "1 photo was left out" in found.err
    lines = run("eval", "caption", "--data", data, "--model", tiny).out.splitlines()
    assert "  photos     2" in lines and "  beams                  2" in lines
    strict = run("eval", "caption", "--data", data, "--model", tiny, "--json", "--strict")
    assert strict.code == 2 and "4.png" in strict.err and not strict.out


def test_captions_are_kept_as_lines(run, tiny: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    found = run("eval", "caption", "--data", data, "--model", tiny, "--output", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found.code == 2 and len(lines) == 2 and set(lines[0]) == {"id", "caption", "references"}
    missing = run("eval", "caption", "--data", data, "--model", tiny, "--output", tmp_path / "no" / "out.jsonl")
    assert missing.code == 2 and "there is no folder" in missing.err


def test_questions_are_asked_as_people_ask_them(
    run,  # noqa: F811
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = blip2_tasks(), list[dict[str, Any]]()

    def ask(images: list[Any], questions: list[str], **settings: Any) -> list[Answer]:
        given.append(settings)
        return [Answer("dog", "blip2", -0.1, ("dog",), (-0.1,))] * len(questions)

    monkeypatch.setattr(model, "ask", ask)
    monkeypatch.setattr(tasks, "load_answerer", lambda name: model)
    assert run("eval", "vqa", "--data", data, "--json").code == 2  # one photo is damaged
    assert given and not any(given)  # the search is the model's own
    given.clear()
    assert run("eval", "vqa", "--data", data, "--json", "--beams", 1).code == 2
    assert given[0] == {"beams": 1}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("caption", "--split", "train", "--floor"), "measure on another one"),
        (("caption", "--shots", "2"), "takes no examples"),
        (("caption", "--writer", "lm"), "one way to write"),
        (("caption", "--split", "val"), "has no split"),
        (("vqa",), "cannot answer questions"),
        (("vqa", "--model", "blip2", "--shots", "2"), "takes no examples"),
        (("choice",), "for choices take flamingo or blip2"),
        (("retrieval",), "cannot match"),
        (("fewshot",), "takes no examples"),
        (("attention",), "no photo has the"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run,  # noqa: F811
    tiny: Path,  # noqa: F811
    data: Path,
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    kind, *options = arguments
    found = run("eval", kind, "--data", data, "--model", tiny, *options)
    last = found.err.splitlines()[-1]
    assert found.code == 2 and reason in last, found.err


def test_the_nearest_examples_need_a_number(run, tiny: Path, data: Path) -> None:  # noqa: F811
    refused = run("eval", "caption", "--data", data, "--model", tiny, "--nearest")
    assert refused.code == 2 and "say how many" in refused.err
