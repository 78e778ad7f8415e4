"""Models named as people name them: a folder of transformers', one of the hub's cache, a model on the hub, a published file."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_blip2_transformers import Pair, generation, photos, random_weights  # noqa: F401

import triptych
from triptych.checkpoints import hub
from triptych.checkpoints.hub import fetch_model, is_model_id, local_path, named_model, snapshot_in
from triptych.convert import opening
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.opening import find_checkpoint
from triptych.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def in_hub_cache(cache: Path, name: str, files: Path) -> Path:
    """A model as ``huggingface_hub`` keeps it: blobs by their hash, and links to them."""
    folder, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for i, path in enumerate(sorted(path for path in files.rglob("*") if path.is_file())):
        (folder / "blobs").mkdir(exist_ok=True)
        shutil.copy(path, folder / "blobs" / str(i))
        link = folder / "snapshots" / commit / path.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "blobs" / str(i))
    return folder


def test_a_model_on_the_hub_through_the_command_line(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    """``--model Salesforce/blip2-opt-2.7b``: from the hub's cache, without a network; converted once; its text is transformers'."""
    in_hub_cache(tmp_path / "hf" / "hub", "Salesforce/blip2-opt-2.7b", generation.folder)
    photos[0].save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "triptych", "caption", str(tmp_path / "photo.png"), "--json"]
    command += ["--model", "Salesforce/blip2-opt-2.7b", "--beams", "1", "--max-new-tokens", "8"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "converting Salesforce/blip2-opt-2.7b once" in first.stderr
    inputs = generation.processor(images=photos[0], text="a photo of", return_tensors="pt")
    ids = generation.peer.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    expected = generation.ours.tokenizer.decode(ids.tolist())
    caption = json.loads(first.stdout)["caption"]
    assert caption.lower().rstrip(".") == " ".join(expected.lower().split()).rstrip(".")
    again = find_checkpoint(tmp_path / "hf" / "hub" / "models--Salesforce--blip2-opt-2.7b")
    assert again == next((tmp_path / "home" / "converted").iterdir())


def test_a_folder_is_converted_once(
    generation: Pair,  # noqa: F811
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(generation.folder, tmp_path / "blip2")
    target = find_checkpoint(folder)
    assert f"converting {folder} once" in capsys.readouterr().err
    assert find_checkpoint(folder) == target and capsys.readouterr().err == ""
    assert find_checkpoint(target) == target
    (folder / "model.safetensors").touch()  # another time: perhaps another file
    assert find_checkpoint(folder) != target
    loaded: Any = triptych.load(folder, device="cpu")
    assert loaded.engine.model.state_dict().keys() == generation.ours.engine.model.state_dict().keys()


def test_a_copy_of_a_model_on_the_hub(
    generation: Pair,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``convert`` takes the names that ``--model`` takes."""
    cached = in_hub_cache(tmp_path / "hub", "Salesforce/blip2-opt-2.7b", generation.folder)
    monkeypatch.setattr(hub, "fetch_model", lambda name: snapshot_in(cached))
    sizes = {path.name: path.stat().st_size for path in generation.target.iterdir()}
    for i, name in enumerate((Path("Salesforce/blip2-opt-2.7b"), cached)):
        report = convert_checkpoint(name, tmp_path / f"copy{i}")
        assert set(report.mapped) == set(generation.report.mapped)
        assert (tmp_path / f"copy{i}" / "triptych.safetensors").stat().st_size == sizes["triptych.safetensors"]


def test_a_failed_conversion_leaves_nothing(generation: Pair, tmp_path: Path, home: Path) -> None:  # noqa: F811
    folder = shutil.copytree(generation.folder, tmp_path / "blip2")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="a pointer of Git LFS"):
        find_checkpoint(folder)
    assert not list((home / "converted").iterdir())


def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("photo.jpg", "llama.gguf", "blip2.zip", "encoder.onnx"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "models--a--b").mkdir()
    (tmp_path / "runs" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "runs" / "checkpoint-500" / "config.json").write_text("{}")
    for name, message in (
        ("nothing", "unknown model 'nothing': choose blip2, flamingo, sat, or name a checkpoint directory"),
        (tmp_path / "empty", "empty has no config.json: it is neither"),
        (tmp_path / "photo.jpg", "photo.jpg is no checkpoint"),
        (tmp_path / "llama.gguf", "a language model alone: give it with --lm"),
        (tmp_path / "blip2.zip", "is packed: unpack it first"),
        (tmp_path / "encoder.onnx", "name the model that they were made of"),
        (tmp_path / "runs", "checkpoint-500 within it has one: name that"),
        (tmp_path / "models--a--b", "no files of the model: download it again"),
    ):
        with pytest.raises(InputError, match=message):
            find_checkpoint(name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00001-of-00002.safetensors"])
def test_a_file_of_a_folder_names_the_folder(generation: Pair, tmp_path: Path, name: str) -> None:  # noqa: F811
    folder = Path(shutil.copytree(generation.folder, tmp_path / "blip2"))
    if "-of-" in name:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        for i in range(2):
            part = {key: state[key] for key in sorted(state)[i::2]}
            save_file(part, folder / f"model-0000{i + 1}-of-00002.safetensors")
    assert find_checkpoint(folder / name) == find_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("https://huggingface.co/Salesforce/blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b"),
        ("https:/huggingface.co/Salesforce/blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b"),  # as a Path
        ("hf.co/Salesforce/blip2-opt-2.7b/", "Salesforce/blip2-opt-2.7b"),
        ("https://huggingface.co/Salesforce/blip2-opt-2.7b/tree/v1/sub", "Salesforce/blip2-opt-2.7b@v1"),
        ("https://huggingface.co/Salesforce/blip2-opt-2.7b/blob/main/config.json", "Salesforce/blip2-opt-2.7b@main"),
        ("Salesforce/blip2-opt-2.7b/", "Salesforce/blip2-opt-2.7b"),
        ("Salesforce/blip2-opt-2.7b@main", "Salesforce/blip2-opt-2.7b@main"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_the_page_of_a_model(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_model(name) == model
    monkeypatch.setattr(hub, "fetch_model", lambda name: tmp_path / name.replace("/", "-"))
    if is_model_id(model):
        assert local_path(name) == tmp_path / model.replace("/", "-")


def test_the_hub_answers_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[Any] = []

    def raising(error: Exception) -> Any:
        def snapshot(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            asked.append((name, revision, allow_patterns))
            raise error

        return snapshot

    for error, message in (
        (LocalEntryNotFoundError("x"), "is not in the hub's cache, and the hub does not answer"),
        (OSError("disk\nfull"), "cannot get a/b@v1 from the hub: disk full"),
    ):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
        with pytest.raises(InputError, match=message):
            fetch_model("a/b@v1")
    name, revision, patterns = asked[0]
    assert (name, revision) == ("a/b", "v1")
    assert not any(pattern.endswith((".py", ".bin", "*")) and pattern != "qformer_tokenizer/*" for pattern in patterns)
    assert is_model_id("a/b") and is_model_id("a/b@main") and not is_model_id("a") and not is_model_id("../a/b")
    assert not is_model_id("models/smollm2.gguf") and is_model_id("Salesforce/blip2-opt-2.7b")


def test_pickled_weights_are_fetched_where_there_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        assert ignore_patterns == [*hub.AGAIN]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch_model("a/b") == tmp_path
    assert [any("bin" in pattern for pattern in patterns) for patterns in asked] == [False, True]
    (tmp_path / "model.safetensors").write_bytes(b"")
    fetch_model("a/b")
    assert len(asked) == 3


def test_the_latest_snapshot_where_main_is_unknown(tmp_path: Path) -> None:
    for i, name in enumerate(("old", "new")):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        os.utime(tmp_path / "snapshots" / name, (i, i))
    assert snapshot_in(tmp_path).name == "new"
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("old\n")
    assert snapshot_in(tmp_path).name == "old"


def test_parts_that_a_file_leaves_out_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LAVIS's image encoder beside the file or in torch's cache, its language model on the hub; the tutorial's word map beside it."""
    source = tmp_path / "blip2_opt.pth"
    torch.save({"model": {"query_tokens": torch.zeros(1), "opt_proj.weight": torch.zeros(2560, 1)}}, source)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(opening, "fetch_model", lambda name: Path(name))
    assert opening.frozen_files(source) == (None, None, Path("facebook/opt-2.7b"))
    eva = tmp_path / "torch" / "hub" / "checkpoints" / "eva_vit_g.pth"
    eva.parent.mkdir(parents=True)
    eva.write_bytes(b"x")
    assert opening.frozen_files(source).vision == eva
    tutorial = tmp_path / "BEST_checkpoint_coco.pth.tar"
    with pytest.raises(InputError, match=r"WORDMAP_\*\.json in the same folder, and it is missing"):
        opening.frozen_files(tutorial)
    (tmp_path / "WORDMAP_coco.json").write_text("{}")
    assert opening.frozen_files(tutorial) == (tmp_path / "WORDMAP_coco.json", None, None)
    (tmp_path / "WORDMAP_flickr.json").write_text("{}")
    with pytest.raises(InputError, match="there are 2: name one"):
        opening.frozen_files(tutorial)


@pytest.mark.parametrize(
    ("place", "width", "name", "expected"),
    [
        ("transformer.blocks", 2048, "openflamingo/OpenFlamingo-3B-vitl-mpt1b", "anas-awadalla/mpt-1b-redpajama-200b"),
        (
            "transformer.blocks",
            2048,
            "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
            "anas-awadalla/mpt-1b-redpajama-200b-dolly",
        ),
        ("gpt_neox.layers", 2560, "x/OpenFlamingo-4B-vitl-rpj3b", "togethercomputer/RedPajama-INCITE-Base-3B-v1"),
        ("transformer.blocks", 4096, "x/OpenFlamingo-9B-vitl-mpt7b", "anas-awadalla/mpt-7b"),
        ("model.layers", 4096, "x/OpenFlamingo-9B-v1", None),
    ],
)
def test_an_open_flamingo_on_the_hub_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, width: int, name: str, expected: str | None
) -> None:
    """Its repository holds checkpoint.pt alone; CLIP and the language model come from their own, or lie beside it."""
    files = tmp_path / "files"
    files.mkdir()
    state = {"perceiver.latents": torch.zeros(64, 1024), "perceiver.frame_embs": torch.zeros(())}
    state[f"lang_encoder.{place}.0.gated_cross_attn_layer.attn.norm.weight"] = torch.zeros(width)
    torch.save(state, files / "checkpoint.pt")
    folder = in_hub_cache(tmp_path / "hub", name, files)
    given: list[Any] = []

    def fetch(name: str) -> Path:
        return Path("on the hub") / name

    def convert(source: Path, target: Path, word_map: None, vision: Path, lm: Path | None) -> None:
        given.append((source.name, vision, lm))
        target.mkdir()

    monkeypatch.setattr(opening, "fetch_model", fetch)
    monkeypatch.setattr("triptych.convert.checkpoint.convert_checkpoint", convert)
    find_checkpoint(folder)
    hub_lm = None if expected is None else fetch(expected)
    assert given == [("checkpoint.pt", fetch("openai/clip-vit-large-patch14"), hub_lm)]
    snapshot = next((folder / "snapshots").iterdir())
    (snapshot / "clip-vit-large-patch14").mkdir()
    assert opening.frozen_files(snapshot / "checkpoint.pt", name).vision == snapshot / "clip-vit-large-patch14"
    assert "checkpoint.pt" in hub.PICKLED


def test_only_weights_and_settings_are_allowed() -> None:
    """Of weights that are there in two layouts (Mistral, Llama 3) one is fetched."""
    assert any(fnmatch("consolidated.safetensors", pattern) for pattern in hub.AGAIN)
    assert not any(fnmatch("model-00001-of-00002.safetensors", pattern) for pattern in hub.AGAIN)
    assert not any(pattern.endswith(".py") for pattern in (*hub.SETTINGS, *hub.SAFE, *hub.PICKLED))
