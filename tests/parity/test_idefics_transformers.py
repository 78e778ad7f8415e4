"""IDEFICS, converted from a directory of transformers: the same ids as transformers writes, through the command line too."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_blip2_transformers import LM_SIZES, llama_tokenizer, photos, random_weights  # noqa: F401

from triptych import InputError, load
from triptych.checkpoints.format import load_checkpoint
from triptych.checkpoints.place import LoadReport
from triptych.cli import main
from triptych.convert.checkpoint import convert_checkpoint
from triptych.tasks import FlamingoTasks
from triptych.tasks.words import sentence

FAKE, IMAGE, TURN = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
DESCRIBE = "Describe this image."
SIZE = 12


class Idefics(NamedTuple):
    peer: Any
    processor: Any
    folder: Path
    report: LoadReport
    ours: FlamingoTasks
    instructed: bool


def idefics_config(words: int, added: int, vector: bool) -> Any:
    vision = {"embed_dim": 24, "image_size": SIZE, "intermediate_size": 48, "patch_size": 4}
    perceiver = {"use_resampler": True, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3}
    return transformers.IdeficsConfig(
        **LM_SIZES | {"num_hidden_layers": 4},
        intermediate_size=30,
        vocab_size=words,
        additional_vocab_size=added,
        cross_layer_interval=2,
        qk_layer_norms=True,
        alpha_type="vector" if vector else "float",
        use_resampler=True,
        vision_config=vision | {"num_hidden_layers": 2, "num_attention_heads": 4},
        perceiver_config=perceiver | {"resampler_head_dim": 10, "qk_layer_norms_perceiver": vector},
    )


@pytest.fixture(scope="module", params=["base", "instruct"])
def idefics(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Idefics:
    """The base model's gates are numbers; the other's vectors, its resampler norms queries and keys, and it has one token more."""
    instructed, tmp, tokenizer = request.param == "instruct", tmp_path_factory.mktemp("idefics"), llama_tokenizer()
    words = len(tokenizer)
    added = [FAKE, IMAGE] + [TURN] * instructed
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    images = transformers.IdeficsImageProcessorPil(image_size=SIZE)
    processor = transformers.IdeficsProcessor(images, tokenizer, image_size=SIZE)
    peer = random_weights(transformers.IdeficsForVisionText2Text(idefics_config(words, len(added), instructed)))
    peer.save_pretrained(tmp / "peer")
    processor.save_pretrained(tmp / "peer")
    report = convert_checkpoint(tmp / "peer", tmp / "ours")
    ours = load(tmp / "ours", device="cpu")
    assert isinstance(ours, FlamingoTasks)
    return Idefics(peer, processor, tmp / "peer", report, ours, instructed)


def their_ids(idefics: Idefics, prompt: list[Any], beams: int = 1) -> list[int]:
    """The two tokens of pictures are never written."""
    inputs = idefics.processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")
    tokenizer = idefics.processor.tokenizer
    ids = idefics.peer.generate(
        **inputs,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=10,
        length_penalty=0.0,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN if idefics.instructed else "</s>"),
        bad_words_ids=[[tokenizer.convert_tokens_to_ids(token)] for token in (FAKE, IMAGE)],
        renormalize_logits=True,
    )
    return list(ids[0, inputs.input_ids.shape[1] :].tolist())


def plain(idefics: Idefics, ids: list[int]) -> str:
    return str(idefics.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_every_key_is_accounted_for(idefics: Idefics) -> None:
    saved = set(load_file(idefics.folder / "model.safetensors"))
    left = {f"model.vision_model.post_layernorm.{leaf}" for leaf in ("weight", "bias")}  # of the class token alone
    assert set(idefics.report.mapped) == saved - left and set(idefics.report.ignored) == left
    gates = idefics.ours.engine.gates()
    assert len(gates) == 2 and all(abs(gate) > 0 for pair in gates for gate in pair)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_theirs(idefics: Idefics, photos: list[Image.Image], beams: int) -> None:  # noqa: F811
    turn, texts = TURN * idefics.instructed, set()
    for photo in photos:
        expected = their_ids(idefics, ["User:", photo, f"{DESCRIBE}{turn}\nAssistant:"], beams)
        caption = idefics.ours.caption(photo, beams=beams, max_new_tokens=10)
        assert caption.text == sentence(plain(idefics, expected))
        texts.add(caption.text)
    assert len(texts) > 1


def test_examples_and_questions_are_theirs(idefics: Idefics, photos: list[Image.Image]) -> None:  # noqa: F811
    """A token attends to the last picture before it, whatever stands between; two pictures in a row have one token between them."""
    turn = TURN * idefics.instructed
    first, second = photos[:2]
    expected = their_ids(idefics, ["User:", first, f"what is it?{turn}\nAssistant:"])
    assert idefics.ours.ask(first, "what is it?", max_new_tokens=10).text == plain(idefics, expected)
    text = f"one{IMAGE}{IMAGE}two"
    answer = idefics.ours.interleaved([first, second], text, max_new_tokens=10)
    assert answer.text == plain(idefics, their_ids(idefics, ["one", first, second, "two"]))
    ids = idefics.ours.prompts.ids(text, 2)
    inputs = idefics.processor(text=[["one", first, second, "two"]], return_tensors="pt")
    assert ids == inputs.input_ids[0].tolist()


def test_logits_before_and_behind_a_picture(idefics: Idefics, photos: list[Image.Image]) -> None:  # noqa: F811
    inputs = idefics.processor(text=[["a dog", photos[0], "and", photos[1], "a cat"]], return_tensors="pt")
    theirs = idefics.peer(**inputs).logits
    model = idefics.ours.engine.model
    tokens = model.resampler(model.encode(inputs.pixel_values[0]))
    hidden = model(inputs.input_ids, model.media(tokens, [2]))
    torch.testing.assert_close(model.lm.logits(hidden), theirs, rtol=1e-4, atol=1e-4)


def test_the_command(
    idefics: Idefics,
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``triptych caption --model DIR`` of the published folder; where it looked can be drawn."""
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    photos[0].save(tmp_path / "photo.png")
    options = ["--model", str(idefics.folder), "--max-new-tokens", "10", "--json", "--explain", str(tmp_path / "maps")]
    monkeypatch.setattr(sys, "argv", ["triptych", "caption", str(tmp_path / "photo.png"), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    expected = their_ids(idefics, ["User:", photos[0], f"{DESCRIBE}{TURN * idefics.instructed}\nAssistant:"])
    assert json.loads(out)["caption"] == sentence(plain(idefics, expected))


def test_the_published_config(idefics: Idefics, tmp_path: Path) -> None:
    """It says of the resampler in one place that there is one, in another that there is none; the first counts, as in transformers. A
    module around the model, as trainers save it, makes no difference."""
    folder = Path(shutil.copytree(idefics.folder, tmp_path / "peer"))
    config = json.loads((folder / "config.json").read_text())
    config["perceiver_config"] |= {"use_resampler": False, "model_type": "idefics"}
    config |= {"torch_dtype": "bfloat16", "architectures": None}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    save_file({f"model.{key}": tensor for key, tensor in state.items()}, folder / "model.safetensors")
    convert_checkpoint(folder, tmp_path / "ours")
    assert load_checkpoint(tmp_path / "ours")[0].model == asdict(idefics.ours.engine.model.config)


def test_what_is_not_covered_is_refused(idefics: Idefics, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(idefics.folder, tmp_path / "peer"))
    config = json.loads((folder / "config.json").read_text())

    def refused(message: str, **changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=message):
            convert_checkpoint(folder, tmp_path / "ours")

    refused("without a resampler", use_resampler=False)
    refused("does not fit Flamingo", cross_layer_interval=4)
    refused("does not fit Flamingo|not an IDEFICS", qk_layer_norms=False)
    refused("does not fit Decoder", num_hidden_layers=5)
    state = load_file(folder / "model.safetensors")
    save_file({key.removeprefix("model."): state[key] for key in state}, folder / "model.safetensors")
    refused("without the layer that writes text: save the model as IdeficsForVisionText2Text")
    state.pop("model.perceiver_resampler.latents")
    save_file(state, folder / "model.safetensors")
    refused("not an IDEFICS of the known layout")
    assert not (tmp_path / "ours").exists()
