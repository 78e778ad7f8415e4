"""BLIP-2 out again: transformers opens the folder and writes the same ids; what it cannot compute is refused with the reason."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from test_blip2_t5_transformers import Pair as T5Pair
from test_blip2_t5_transformers import pair as t5_pair  # noqa: F401
from test_blip2_transformers import Pair, generation, instruct, photos, retrieval  # noqa: F401
from tiny_blip2 import tiny_blip2

from triptych.checkpoints.config import Card
from triptych.checkpoints.locate import BUNDLED
from triptych.cli import main
from triptych.convert.export_hf import export_hf
from triptych.errors import InputError
from triptych.models import save_blip2


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def same_tensors(ours: Path, theirs: Path) -> None:
    mine, peer = tensors_of(ours), tensors_of(theirs)
    assert mine.keys() == peer.keys()
    for name, tensor in peer.items():
        assert torch.equal(mine[name], tensor), name


def test_blip2_opens_in_transformers(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "hf"
    monkeypatch.setattr(sys, "argv", ["triptych", "export", str(generation.target), str(target), "--format", "hf"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    same_tensors(target, generation.folder)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(target).eval()
    processor = transformers.Blip2Processor.from_pretrained(target)
    for photo in photos:
        inputs = processor(images=photo, text="a photo of", return_tensors="pt")
        expected = generation.processor(images=photo, text="a photo of", return_tensors="pt")
        torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
        assert torch.equal(model.generate(**inputs, **settings), generation.peer.generate(**expected, **settings))


def test_instructblip_has_the_same_tensors_and_sizes(
    instruct: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    assert export_hf(instruct.target, tmp_path / "hf") == len(tensors_of(instruct.folder))
    same_tensors(tmp_path / "hf", instruct.folder)
    mine, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hf", instruct.folder))
    for part in ("vision_config", "qformer_config", "text_config"):
        for name, value in mine[part].items():
            if name not in ("eos_token_id", "rope_theta"):
                assert theirs[part].get(name, value) == value, (part, name)
    processor = transformers.InstructBlipProcessor.from_pretrained(tmp_path / "hf")
    inputs, expected = (
        each(images=photos[0], text="a dog?", return_tensors="pt") for each in (processor, instruct.processor)
    )
    assert torch.equal(inputs["qformer_input_ids"], expected["qformer_input_ids"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_a_t5_opens_in_transformers(
    t5_pair: T5Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    export_hf(Path(t5_pair.ours.name), tmp_path / "hf")
    model = type(t5_pair.peer).from_pretrained(tmp_path / "hf").eval()
    assert model.language_model.config.dense_act_fn == "gelu"
    settings = {
        "do_sample": False,
        "max_new_tokens": 8,
        "eos_token_id": None,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    for photo in photos:
        inputs = t5_pair.processor(images=photo, text="a photo of", return_tensors="pt")
        assert torch.equal(model.generate(**inputs, **settings), t5_pair.peer.generate(**inputs, **settings))


def test_matching_opens_in_transformers(
    retrieval: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    assert export_hf(retrieval.target, tmp_path / "hf") == len(tensors_of(retrieval.folder))
    same_tensors(tmp_path / "hf", retrieval.folder)
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "hf").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("a dog?", return_tensors="pt")
    expected = retrieval.processor.tokenizer("a dog?", return_tensors="pt")
    assert torch.equal(words["input_ids"], expected["input_ids"])
    pixels = retrieval.processor.image_processor(photos[:1], return_tensors="pt").pixel_values
    scores = [
        each(pixels, words["input_ids"], words["attention_mask"], use_image_text_matching_head=True).logits_per_image
        for each in (model, retrieval.peer)
    ]
    assert torch.equal(*scores)


def test_what_transformers_cannot_compute_is_refused(generation: Pair, tmp_path: Path) -> None:  # noqa: F811
    save_blip2(tmp_path / "tiny", tiny_blip2(), Card())
    for folder, message in (
        (
            BUNDLED / "blip2",
            "reads photos with the CNN efficientnet-lite2, for which transformers' BLIP-2 has no place",
        ),
        (BUNDLED / "sat", "holds a sat model, not blip2"),
        (tmp_path / "tiny", "reads photos with the CNN tiny"),
    ):
        with pytest.raises(InputError, match=message):
            export_hf(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not an empty folder"):
        export_hf(generation.target, tmp_path / "full")


def test_transformers_does_not_open_our_folders_with_random_weights(generation: Pair) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="triptych_blip2"):
        transformers.AutoModel.from_pretrained(generation.target)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.Blip2ForConditionalGeneration.from_pretrained(generation.target)
