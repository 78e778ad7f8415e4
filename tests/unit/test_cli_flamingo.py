"""Flamingo's commands over a tiny model: what they print, and how they refuse."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import Result, run  # noqa: F401  (a fixture)
from tiny_flamingo import flamingo_tasks

from triptych.cli.prompting import read_shot
from triptych.errors import InputError
from triptych.train.flamingo.recipe import SHARES

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = flamingo_tasks(max_positions=1000)
    monkeypatch.setattr("triptych.tasks.load", lambda *_, **__: tasks)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def test_complete_prints_one_result(run: Run, photos: list[Path], tmp_path: Path) -> None:  # noqa: F811
    shots = [x for i, name in enumerate(("a dax", "a wug")) for x in ("--shot", f"{photos[i]}={name}")]
    found = run("complete", *shots, "--image", photos[2], "--json")
    assert found.code == 0 and set(json.loads(found.out)) == {"image", "model", "text", "logprob", "method", "recipe"}
    page = tmp_path / "page.html"
    chosen = run(
        "complete", *shots, "--image", photos[2], "--prompt", "This is", "--choices", "a dax", "--choices", "a wug",
        "--json", "--explain", page,
    )  # fmt: skip
    record = json.loads(chosen.out)
    assert record["text"] in ("a dax", "a wug") and set(record["scores"]) == {"a dax", "a wug"}
    assert page.read_text().count("photo-0-2") > 1  # the examples' pictures and the asked one
    assert run("complete", *shots, "--image", photos[2], "--similar", 1).code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--shot", "nothing"), "write IMAGE=TEXT"),
        (("--shot", "0.png="), "has no text"),
        (("--shot", "none.png=a dog"), "none.png"),
        (("--similar", "2", "--prompt", "This is"), "give some"),
        (("--shot", "0.png=a dog", "--similar", "2"), "2 similar examples of 1"),
        (("--choices", "one"), "at least two choices"),
        ((), "nothing says what to do"),
    ],
)
def test_complete_refuses(
    run: Run,  # noqa: F811
    photos: list[Path],
    arguments: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos[0].parent)
    found = run("complete", "--image", "2.png", *arguments)
    assert found.code == 2 and reason in found.err and found.err.count("\n") == 1 and not found.out


def test_shots_are_split_where_the_file_ends(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.png"
    odd.touch()
    assert read_shot(f"{odd}=x = y") == (str(odd), "x = y")
    assert read_shot("=a text alone") == (None, "a text alone")
    assert read_shot("https://example.org/?a=b=a dog") == ("https://example.org/?a=b", "a dog")
    assert read_shot("none.png=a=b") == ("none.png", "a=b")
    with pytest.raises(InputError, match="has no text"):
        read_shot("a.png= ")


def chat(run: Run, monkeypatch: pytest.MonkeyPatch, text: str, *arguments: object) -> Result:  # noqa: F811
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run("chat", *arguments)


def test_chat_answers_line_by_line(
    run: Run,  # noqa: F811
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = tmp_path / "chat.json"
    said = f"what is it?\n/image {photos[1]}\nand this?\n/undo\nand this?\n/save {kept}\n/quit\nnever read\n"
    found = chat(run, monkeypatch, said, photos[0])
    assert found.code == 0
    answers = found.out.splitlines()
    assert len(answers) == 3 and answers[1] == answers[2]
    assert "taken back: and this?" in found.err and f"saved: {kept}" in found.err
    again = chat(run, monkeypatch, f"/load {kept}\nand now?\n", "--json")
    assert again.code == 0 and "2 turns" in again.err
    assert set(json.loads(again.out)) == {"question", "answer"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("what?", "no picture yet"),
        ("/image", "needs a file"),
        ("/image none.png", "none.png"),
        ("/undo", "nothing to undo"),
        ("/load none.json", "cannot read"),
        ("/dance", "not a command"),
    ],
)
def test_chat_goes_on_after_a_mistake(
    run: Run,  # noqa: F811
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    reason: str,
) -> None:
    found = chat(run, monkeypatch, f"{line}\n/image {photos[0]}\nwhat is it?\n")
    assert found.code == 2 and reason in found.err and len(found.out.splitlines()) == 1


def test_training_takes_its_tasks_and_their_weights(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes = []
    monkeypatch.setattr("triptych.train.flamingo.start.train_flamingo", lambda *given: recipes.append(given[2]))
    train = ("train", "flamingo", "--data", tmp_path, "--run", tmp_path / "run")
    assert run(*train).code == 0
    assert run(*train, "--share", "scst=0.7", "--share", "caption=0.3", "--weight", "caption=0.2").code == 0
    plain, told = recipes
    assert plain.shares == SHARES and plain.weights == {}
    assert told.shares == {"scst": 0.7, "caption": 0.3} and told.weights == {"caption": 0.2}
    for wrong in (
        ("--share", "captions=1"),
        ("--weight", "caption"),
        ("--weight", "dialog=1"),
        ("--weight", "caption=-1"),
        ("--weight", "caption=nan"),
        ("--share", "caption=1", "--share", "caption=2"),
    ):
        refused = run(*train, *wrong)
        assert refused.code == 2 and len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    "typed",
    [
        '/image "{path}"', "/image '{path}'", "/image {escaped}", "{escaped}", "'{path}'", "{path}", "/image {path}", "/image ~/my dog.png",
        "~/my\\ dog.png", "{escaped} '{path}'",
    ],
)  # fmt: skip
def test_paths_typed_or_dragged_into_a_chat(
    run: Run,  # noqa: F811
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
) -> None:
    path = tmp_path / "my dog.png"
    path.write_bytes(photos[0].read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    line = typed.format(path=path, escaped=str(path).replace(" ", "\\ "))
    found = chat(run, monkeypatch, f"{line}\nwhat is it?\n/save ~/kept.json\n")
    assert found.code == 0 and ("added" in found.err or "2 pictures wait" in found.err)
    assert (tmp_path / "kept.json").is_file()


@pytest.mark.parametrize("line", ["/home/nobody/no.png", "/home/nobody", "no.JPG", "'my no.jpg'", "my\\ no.jpg"])
def test_a_path_to_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:  # noqa: F811
    found = chat(run, monkeypatch, f"{line}\n")
    assert (found.code, found.out) == (2, "") and f"{line}: no such picture" in found.err


def test_a_question_may_end_with_the_name_of_a_picture(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert "no such picture" not in chat(run, monkeypatch, "what is in no.jpg\n").err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "{photo}", "-q", "x \udcb0\udcad"),
        ("ask", "{photo}", "-q", "what?", "--choices", "a\udcb0", "--choices", "b"),
        ("compare", "{photo}", "{photo}", "-q", "Which photo shows \udcb0?"),
        ("complete", "--image", "{photo}", "--prompt", "\udcb0"),
        ("complete", "--image", "{photo}", "--shot", "{photo}=\udcb0"),
        ("complete", "--image", "{photo}", "--choices", "\udcb0", "--choices", "b"),
    ],
)
def test_text_that_is_not_unicode_is_one_line_and_exit_2(
    run: Run,  # noqa: F811
    photos: list[Path],
    arguments: tuple[str, ...],
) -> None:
    found = run(*(argument.replace("{photo}", str(photos[0])) for argument in arguments), "--model", "flamingo")
    assert found.code == 2 and "is not Unicode" in found.err and len(found.err.splitlines()) == 1


def test_a_chat_goes_on_after_text_that_is_not_unicode(
    run: Run,  # noqa: F811
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = chat(run, monkeypatch, "x \udcb0\nwhat is it?\n", photos[0])
    assert found.code == 2 and "is not Unicode" in found.err and found.out.strip()
