"""Folders of transformers as people have them: other file layouts and older configs give the same text; what cannot be read, one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_blip2_transformers import COLOURS, Pair, generation, photos  # noqa: F401

from triptych.cli import main

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
QKV = "language_model.model.decoder.layers.0.self_attn.q_proj"
OLDER_PROCESSOR = COLOURS | {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "BlipImageProcessor",
    "processor_class": "Blip2Processor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 12, "width": 12},
}
State = dict[str, torch.Tensor]
Edit = Callable[[Path, State], None]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(generation: Pair, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(generation.folder, tmp_path / "blip2"))


@pytest.fixture
def command(tmp_path: Path, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:  # noqa: F811
    """``triptych caption`` with a folder; returns the exit code."""
    photos[0].save(tmp_path / "photo.png")

    def run(model: Path) -> int:
        options = ["--json", "--beams", "1", "--max-new-tokens", "8", "--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["triptych", "caption", str(tmp_path / "photo.png"), *options])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path, state: State) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def rewritten(change: Callable[[State], State]) -> Edit:
    return lambda folder, state: save_file(change(state), folder / WEIGHTS)


def older_files(folder: Path, state: State) -> None:
    """Of 2023: no image token in config and tokenizer, the processor in a file of its own, the tokenizer in GPT-2's files."""
    changed("config.json", lambda c: (c.pop("image_token_index"), c.pop("dtype", 0), c.update(torch_dtype="float16")))(
        folder, state
    )
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(OLDER_PROCESSOR))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    specials = {f"{name}_token": {"__type": "AddedToken", "content": "</s>"} for name in ("bos", "eos", "unk")}
    settings = specials | {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def shards_without_index(folder: Path, state: State, kept: int = 2) -> None:
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    for i in range(kept):
        save_file({name: state[name] for name in names[i::2]}, folder / f"model-0000{i + 1}-of-00002.safetensors")


def bin_file(folder: Path, state: State) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")


def bin_shards(folder: Path, state: State) -> None:
    (folder / WEIGHTS).unlink()
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(sorted(state))}
    for file in set(places.values()):
        torch.save({name: state[name] for name in state if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def with_more_keys(state: State) -> State:
    embedding = state["language_model.model.decoder.embed_tokens.weight"]
    more = {"vision_model.embeddings.position_ids": torch.arange(10)[None], "language_model.lm_head.weight": embedding}
    return state | {name: tensor.clone() for name, tensor in more.items()}


def with_the_output_layer_alone(state: State) -> State:
    """Files hold one of two tied tensors, and not always the embedding."""
    rest = dict(state)
    rest["language_model.lm_head.weight"] = rest.pop("language_model.model.decoder.embed_tokens.weight")
    return rest


SAME: dict[str, Edit] = {
    "bin": bin_file,
    "shards without an index": shards_without_index,
    "a variant's name": lambda folder, state: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors") and None,
    "bin shards with an index": bin_shards,
    "norms in another dtype": rewritten(
        lambda state: {key: x.float() if "norm" in key else x.double() for key, x in state.items()}
    ),
    "queries in another dtype than keys": rewritten(
        lambda state: {key: x.double() if "q_proj" in key else x for key, x in state.items()}
    ),
    "the class without a loss": changed("config.json", lambda c: c.update(architectures=["Blip2Model"])),
    "no architectures": changed("config.json", lambda c: c.pop("architectures")),
    "older files": older_files,
    "keys in a wrapper": rewritten(lambda state: {f"base_model.model.{key}": x for key, x in state.items()}),
    "more keys": rewritten(with_more_keys),
    "the output layer alone": rewritten(with_the_output_layer_alone),
    "no tokenizer_config.json": lambda folder, state: (folder / "tokenizer_config.json").unlink(),
    "an index of shards that were joined": lambda folder, state: (
        (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"query_tokens": "gone.safetensors"}}') and None
    ),
    "float16": rewritten(lambda state: {key: x.half() for key, x in state.items()}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_text(
    name: str,
    folder: Path,
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    command: Callable[[Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    SAME[name](folder, load_file(folder / WEIGHTS))
    assert command(folder) == 0
    inputs = generation.processor(images=photos[0], text="a photo of", return_tensors="pt")
    ids = generation.peer.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    expected = generation.ours.tokenizer.decode(ids.tolist())
    caption = json.loads(capsys.readouterr().out)["caption"]
    assert caption.lower().rstrip(".") == " ".join(expected.lower().split()).rstrip(".")


def as_adapter(folder: Path, state: State) -> None:
    """A PEFT folder, with the base model's config beside it or without."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Salesforce/blip2-opt-2.7b"}')
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


def with_bytes(state: State) -> State:
    return state | {f"{QKV}.weight": torch.zeros(28, 28, dtype=torch.int8)}


def shards_elsewhere(folder: Path, name: str) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / "weights").mkdir()
    (folder / WEIGHTS).rename(folder / "weights" / WEIGHTS)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))


def linked(folder: Path, target: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(target)


REFUSED: dict[str, tuple[Edit, str]] = {
    "a shard is missing": (
        lambda folder, state: shards_without_index(folder, state, kept=1),
        "1 of 2 shards, number 2 is missing: download the missing shards",
    ),
    "an adapter": (as_adapter, "holds an adapter: merge it into its base model"),
    "an adapter beside the model": (
        lambda folder, state: (folder / "adapter_config.json").write_text("{}") and None,
        "holds an adapter: merge it into its base model",
    ),
    "an adapter within": (
        rewritten(lambda state: state | {f"{QKV}.lora_A.default.weight": torch.zeros(4, 28)}),
        "lora_A.default.weight, of an adapter: merge it into the model",
    ),
    "bitsandbytes by its keys": (
        rewritten(lambda state: with_bytes(state) | {f"{QKV}.SCB": torch.ones(28)}),
        "SCB, of quantised weights",
    ),
    "integers": (rewritten(with_bytes), "holds int8 instead of floating-point numbers"),
    "bitsandbytes of old": (
        changed("config.json", lambda c: c.update(quantization_config={"load_in_8bit": True})),
        "is quantised (bitsandbytes)",
    ),
    "a tokenizer of Git LFS": (
        lambda folder, state: (folder / "tokenizer.json").write_bytes(POINTER) and None,
        "tokenizer.json is a pointer of Git LFS",
    ),
    "no tokenizer": (
        lambda folder, state: (folder / "tokenizer.json").unlink(),
        "has no tokenizer: expected tokenizer.json",
    ),
    "the class without an output layer": (
        changed("config.json", lambda c: c.update(architectures=["InstructBlipModel"])),
        "holds InstructBlipModel, without the layer that writes text: save the model as InstructBlipForConditionalGeneration",
    ),
    "keys without an output layer": (
        rewritten(lambda state: {key.replace("language_model.model.", "language_model."): state[key] for key in state}),
        "without the layer that writes text: save the model as Blip2ForConditionalGeneration",
    ),
    "shards in a folder below": (
        lambda folder, state: shards_elsewhere(folder, "weights/model.safetensors"),
        "names 'weights/model.safetensors', which is no file beside it",
    ),
    "shards anywhere": (
        lambda folder, state: shards_elsewhere(folder, str(folder / "weights" / "model.safetensors")),
        "which is no file beside it: shards lie in the folder of their index",
    ),
    "shards above": (lambda folder, state: shards_elsewhere(folder, "../model.safetensors"), "no file beside it"),
    "shards without a name": (lambda folder, state: shards_elsewhere(folder, ""), "names '', which is no file"),
    "a link to nothing, of the hub's cache": (
        lambda folder, state: linked(folder, folder / "blobs" / "gone"),
        "model.safetensors: it is a link to a file that is not there; download it again",
    ),
    "a header alone": (rewritten(lambda state: {}), "its file of weights holds no tensors: download it again"),
    "a part": (
        changed("config.json", lambda c: c.update(architectures=["Blip2VisionModel"])),
        "holds Blip2VisionModel, a part of a model",
    ),
    "a language model": (
        changed("config.json", lambda c: c.update(architectures=["LlamaForCausalLM"], model_type="llama")),
        "holds LlamaForCausalLM, a language model: `triptych train` and `triptych convert` take it with --lm",
    ),
    "an image encoder": (
        changed("config.json", lambda c: c.update(architectures=None, model_type="siglip")),
        "holds siglip, an image encoder: `triptych train` takes it with --encoder",
    ),
    "another model": (
        changed("config.json", lambda c: c.update(architectures=["BlipForQuestionAnswering"], model_type="blip")),
        "holds BlipForQuestionAnswering: Blip2ForConditionalGeneration,",
    ),
    "truncated": (
        lambda folder, state: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]) and None,
        "ends behind the end of the file",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_what_it_is(
    name: str, folder: Path, command: Callable[[Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = REFUSED[name]
    edit(folder, load_file(folder / WEIGHTS))
    assert command(folder) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if " once, into " not in line]
    assert len(lines) == 1 and message in lines[0]
