"""8-bit weights: small errors, exact rounds, everything else untouched."""

from pathlib import Path

import torch

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec
from triptych.checkpoints.format import load_checkpoint, save_checkpoint
from triptych.checkpoints.quantize import SCALE_SUFFIX, dequantized, quantized, stored_as
from triptych.checkpoints.store import as_store


def test_a_matrix_comes_back_within_half_a_step_of_its_row() -> None:
    torch.manual_seed(0)
    weight = torch.randn(200, 300) * torch.logspace(-4, 2, 200)[:, None]  # rows of very different sizes
    stored = quantized(as_store({"w": weight}))
    assert stored["w"].dtype == torch.int8 and stored["w" + SCALE_SUFFIX].shape == (200,)
    back = dequantized(as_store(stored))["w"]
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((back - weight).abs() <= step / 2 * 1.001).all()
    again = quantized(as_store({"w": back}))
    assert torch.equal(again["w"], stored["w"])  # nothing more is lost by storing it once more


def test_small_and_odd_tensors_are_not_quantised() -> None:
    tensors = {"bias": torch.randn(20_000), "small": torch.randn(3, 4), "ids": torch.arange(40_000).view(200, 200)}
    stored = quantized(as_store(tensors))
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "bias": torch.float16,
        "small": torch.float16,
        "ids": torch.int64,
    }
    assert torch.equal(dequantized(as_store(stored))["ids"], tensors["ids"])


def test_a_parameter_called_scale_is_no_scale() -> None:
    tensors = {"norm.scale": torch.randn(5), "zero": torch.zeros(200, 200)}
    back = dequantized(quantized(as_store(tensors)))
    assert back.keys() == tensors.keys()
    assert torch.equal(back["zero"], tensors["zero"])


def test_a_checkpoint_in_bytes_opens_as_floats(tmp_path: Path) -> None:
    weight = torch.randn(200, 200)
    config = CheckpointConfig(system="blip2", model={}, encoder=EncoderSpec("tiny", stored=True))
    save_checkpoint(tmp_path / "model", config=config, tensors=stored_as({"w": weight}, torch.int8))
    _, tensors = load_checkpoint(tmp_path / "model")
    assert tensors.keys() == {"w"} and tensors["w"].dtype == torch.float32
    torch.testing.assert_close(tensors["w"], weight, atol=weight.abs().max().item() / 127, rtol=0)
