"""The command line: what it prints, where, and its exit codes. Runs in this process over a tiny model; one test starts a real process."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip2 import blip2_tasks

import triptych
from triptych import tasks
from triptych.checkpoints.config import Card
from triptych.cli import main
from triptych.cli.application import COMMAND_ORDER
from triptych.models import SatModel, sat_search, save_sat
from triptych.nn.cnn import EfficientNetLite
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import EOS, SPECIALS, WordVocabulary


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights that needs no pretrained part."""
    torch.manual_seed(0)
    words = WordVocabulary((*SPECIALS, "a", "dog", "'s", "ball", "runs"))
    config = ShowAttendTellConfig(len(words), 1280, embed_dim=8, hidden_dim=8, attention_dim=8)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = ShowAttendTell(config, EfficientNetLite(cut=22, image_size=64))
    model.decoder.output.bias.data[EOS] = -9  # so that captions are not empty
    save_sat(
        folder,
        SatModel.new(model, words, sat_search(beams=2, max_new_tokens=5), whole_encoder=True),
        Card.of({"licence": "none"}),
    )
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


def test_caption_prints_the_text_alone(run, tiny: Path, photo: Path) -> None:
    result = run("caption", photo, "--model", tiny)
    assert result.code == 0
    assert result.out.endswith(".\n")
    assert result.out.count("\n") == 1


def test_caption_json_has_the_fields_of_the_contract(run, tiny: Path, photo: Path) -> None:
    result = run("caption", photo, photo, "--model", tiny, "--json", "--beams", 3)
    records = [json.loads(line) for line in result.out.splitlines()]
    assert len(records) == 2
    assert set(records[0]) == {"image", "model", "caption", "logprob", "method", "seconds", "recipe"}
    assert records[0]["caption"] == records[1]["caption"]
    assert records[0]["logprob"] < 0


def test_one_bad_photo_does_not_lose_the_others(run, tiny: Path, photo: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    result = run("caption", text, photo, tmp_path / "missing.jpg", "--model", tiny, "--json")
    assert result.code == 2
    assert [json.loads(line)["image"] for line in result.out.splitlines()] == [str(photo)]
    assert len(result.err.splitlines()) == 2
    assert "text.jpg" in result.err and "missing.jpg" in result.err


def test_a_folder_stands_for_its_photos(run, tiny: Path, photo: Path) -> None:
    photo.with_name("another.png").write_bytes(photo.read_bytes())
    result = run("caption", photo.parent, "--model", tiny, "--json")
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["another.png", "photo.png"]


def test_a_data_url_is_a_photo(run, tiny: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = photo.with_name("noisy.png")
    Image.effect_noise((64, 64), 9).save(noisy)
    url = f"data:image/png;base64,{base64.b64encode(noisy.read_bytes()).decode()}"
    results = [run("caption", source, "--model", tiny) for source in (url, noisy)]
    monkeypatch.setattr(tasks, "load_answerer", lambda *_: blip2_tasks())
    results += [run("ask", source, "-q", "where is the dog?") for source in (url, noisy)]
    captioned, same_caption, asked, same_answer = [(result.code, result.out, result.err) for result in results]
    assert captioned == same_caption and asked == same_answer and captioned[0] == asked[0] == 0


def test_explain_draws_png_and_page(run, tiny: Path, photo: Path, tmp_path: Path) -> None:
    assert run("explain", photo, "--model", tiny, "--out", tmp_path / "maps.png").code == 0
    with Image.open(tmp_path / "maps.png") as figure:
        assert figure.size[0] == 1400
    assert run("explain", photo, "--model", tiny, "--out", tmp_path / "maps.html").code == 0
    assert (tmp_path / "maps.html").read_text().startswith("<!doctype html>")
    result = run("caption", photo, photo, "--model", tiny, "--explain", tmp_path / "new" / "maps")
    assert result.code == 0
    assert sorted(p.name for p in (tmp_path / "new" / "maps").iterdir()) == ["index.html", "photo-2.png", "photo.png"]


def test_info_counts_parameters(run, tiny: Path) -> None:
    record = json.loads(run("info", tiny, "--json").out)
    encoder = EfficientNetLite(cut=22)
    frozen = sum(p.numel() for p in encoder.layers[:22].parameters())
    assert record["parameters_frozen"] == frozen
    assert record["parameters_trained"] > sum(p.numel() for p in encoder.layers[22:].parameters())
    assert record["grid"] == [2, 2]
    assert set(record["parts"]) >= {"efficientnet-lite2"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["caption", "PHOTO", "--model", "nonesuch"], "nonesuch"),
        (["caption", "PHOTO", "--model", "TINY", "--beams", "0"], "beams"),
        (["caption", "PHOTO", "--model", "TINY", "--beams", "many"], "'many'"),
        (["caption", "PHOTO", "--model", "TINY", "--max-new-tokens", "0"], "max_new_tokens"),
        (["caption", "PHOTO", "--no-such-option"], "--no-such-option"),
        (["caption", "EMPTY", "--model", "TINY"], "empty"),
        (["caption"], "IMAGE"),
        (["caption"], "(see triptych caption --help)"),
        (["caption", "PHOTO", "--existing", "append"], "add one of them"),
        (["caption", "PHOTO", "--no-keep-original"], "--write-metadata"),
        (["caption", "PHOTO", "--alt-text", "page.txt"], "--alt-text page.txt"),
        (["caption", "EMPTY", "--model", "nonesuch", "--out", "out.csv"], "empty: no photos"),
        (["caption", "PHOTO", "--model", "TINY", "--explain", "PHOTO"], "a file has that name"),
        (["ask", "PHOTO", "--question", "where?", "--explain", "maps.png"], "--explain maps.png"),
        (["compare", "PHOTO", "PHOTO", "--question", "which?", "--explain", "maps.png"], "--explain maps.png"),
        (["match", "--image", "PHOTO", "--text", "a dog", "--explain", "maps.png"], "--explain maps.png"),
        (["match", "--image", "PHOTO", "--text", "a dog", "--explain", "nowhere/maps.html"], "no folder nowhere"),
        (["find", "a dog", "--library", "library", "--sheet", "sheet.txt"], "--sheet sheet.txt"),
        (["mcp", "--library", "nowhere"], "--library nowhere: no such library"),
        (["export", "sat", "graphs", "--format", "hf"], "--format hf is for blip2 models"),
        (["export", "blip2", "PHOTO", "--format", "onnx"], "is not an empty folder"),
        (["export", "blip2", "graphs", "--precision", "int8"], "--format onnx"),
        (["no-such-command"], "no-such-command"),
        (["explain", "PHOTO", "--out", "maps.gif"], "maps.gif"),
        (["explain", "missing.jpg", "--out", "maps.png"], "missing.jpg"),
        (["explain", "PHOTO", "--model", "TINY", "--out", "no-folder/maps.png"], "no-folder"),
        (["info", "EMPTY"], "empty"),
        (["eval", "caption", "--data", "nowhere"], "nowhere"),
        (["convert", "missing.pth", "target"], "missing.pth"),
        (["train", "--recipe", "sat.toml", "--data-root", "nowhere", "--run", "EMPTY"], "nowhere/flickr8k"),
        (["train", "--recipe", "own.toml", "--run", "EMPTY"], "cannot read own.toml"),
        (["caption", 300 * "a", "--model", "TINY"], "name too long"),
        (["caption", "PHOTO", "--model", 300 * "a"], "aaa: the name is too long for a file"),
        (["caption", "EMPTY", "--out", f"{300 * 'a'}.csv"], "the name is too long for a file"),
        (["caption", "https://x.org/a.jpg", "--out", "out.csv"], "https://x.org/a.jpg: --out and the other options"),
        (["tag", f"data:image/png;base64,{5000 * 'a'}", "--sidecar", "txt"], "take files, not addresses"),
        (["caption", "", "--model", "TINY"], "IMAGE is empty"),
        (["caption", "PHOTO", "--model", "TINY", "--out="], "--out is empty"),
        (["ask", "PHOTO", "", "--question", "where?"], "IMAGE is empty"),
        (["index", "", "--library", "library"], "DIR is empty"),
        (["eval", "caption", "--data", ""], "--data is empty"),
        (["average", "sat", "flamingo", "--out", "mean"], "another system"),
        (["average", "sat", "nonesuch", "--out", "mean"], "unknown model 'nonesuch'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run, tiny: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"PHOTO": photo, "TINY": tiny, "EMPTY": empty}
    result = run(*(places.get(a, a) for a in arguments))
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("triptych: ")
    assert named in result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "photo.png"]


def test_damaged_weights_are_refused(run, tiny: Path, photo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((copy / "triptych.safetensors").read_bytes())
    damaged[-1] ^= 0xFF
    (copy / "triptych.safetensors").write_bytes(damaged)
    result = run("caption", photo, "--model", copy)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "triptych.safetensors" in result.err


def test_a_full_disk_is_one_line_and_exit_1(run, tiny: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = run("explain", photo, "--model", tiny, "--out", photo.with_name("maps.png"))
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "the disk is full" in result.err
    assert [p.name for p in photo.parent.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(("question", "known"), [("where is the dog?", True), ("犬はどこ？", False)])
def test_a_question_in_unknown_words_is_reported(
    run, photo: Path, monkeypatch: pytest.MonkeyPatch, question: str, known: bool
) -> None:
    monkeypatch.setattr(tasks, "load_answerer", lambda *_: blip2_tasks())
    for result in (run("ask", photo, "-q", question), run("ask", photo.parent, "-q", question)):
        assert result.code == 0
        assert (f"knows no word of '{question}'" in result.err) is not known


def test_names_with_control_characters_stay_on_one_line(run, tiny: Path, photo: Path) -> None:
    names = [photo.with_name("two\nlines.png"), photo.with_name("\x1b[31mred\u202fone.png")]
    for name in names:
        name.write_bytes(photo.read_bytes())
    printed = [run("caption", *names, "--model", tiny), run("caption", photo.parent, "--model", tiny)]
    for lines in (result.out.splitlines() for result in printed):
        assert any(r"two\nlines.png: " in line for line in lines)
        assert any("\\x1b[31mred\u202fone.png: " in line for line in lines)
    names[1].write_bytes(b"no picture")
    result = run("caption", names[1], photo.with_name("\x1b[2Jgone\x07.png"), "--model", tiny)
    folder_run = run("caption", photo.parent, "--model", tiny, "--out", photo.with_name("out\x1b[2J.txt"))
    said = result.err + folder_run.err
    assert "\\x1b[31mred" in said and "\\x1b[2Jgone\\x07.png" in said and "out\\x1b[2J.txt" in said
    assert "\x1b" not in said and "\x07" not in said


def test_help_and_version(run) -> None:
    assert run("--version").out == f"triptych {triptych.__version__}\n"
    assert run().out == run("--help").out
    first = [line.split()[0] for line in run().out.partition("Commands:\n")[2].splitlines()]
    assert first[0] == "caption" and sorted(first) == sorted(COMMAND_ORDER)
    assert "retrieval" in run("eval").out


def test_a_prefix_is_printed_too(run, tiny: Path, photo: Path) -> None:
    plain = run("caption", photo, "--model", tiny).out
    assert run("caption", photo, "--model", tiny, "--prefix", "photo: ").out == f"{photo}: photo: {plain}"


def test_closed_streams_are_empty_input_and_dropped_output(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    result = run("--version")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_a_closed_pipe_and_a_fresh_process(tiny: Path, photo: Path) -> None:
    """A real process, as a shell starts it, whose reader goes away."""
    command = [sys.executable, "-m", "triptych", "caption", str(photo), "--model", str(tiny)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    broken = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert broken.stderr == ""
    assert broken.returncode != 0


def test_where_and_in_which_numbers_torch_computes(run, tiny: Path, photo: Path) -> None:
    record = json.loads(run("caption", photo, "--model", tiny, "--device", "cpu", "--dtype", "bf16", "--json").out)
    same = json.loads(run("caption", photo, "--model", tiny, "--precision", "bf16", "--json").out)
    assert record["caption"] == same["caption"]
    for device, message in (("gpu", "unknown device 'gpu': expected cpu"), ("cuda:99", "there is no device cuda:99")):
        result = run("caption", photo, "--model", tiny, "--device", device)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1
