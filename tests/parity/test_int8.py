"""Published language models in 8-bit integers on torch: half the memory of 16 bits, nearly the same logits."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_blip2_transformers import Pair, generation, instruct, photos  # noqa: F401

from triptych.errors import InputError
from triptych.models import load_blip2
from triptych.models.memory import choose_dtype, weights_in
from triptych.models.placement import placed_dtype
from triptych.nn.int8 import Int8Linear
from triptych.nn.linear import Linear
from triptych.tasks import load


@pytest.mark.parametrize("name", ["generation", "instruct"])
def test_logits(name: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(name)
    lm = load_blip2(pair.target, dtype=torch.int8).model.lm
    layers = [module for module in lm.modules() if isinstance(module, Int8Linear)]
    assert layers and not any(type(module) is Linear for module in lm.modules())
    assert all(layer.codes.dtype == torch.int8 and layer.codes.abs().max() == 127 for layer in layers)
    assert weights_in(pair.target).language == sum(layer.codes.numel() for layer in layers)
    ids, own = torch.arange(1, 9)[None], pair.ours.engine.model.lm
    with torch.inference_mode():
        expected, logits = own.logits(own(ids)), lm.float().logits(lm(ids))
    assert (logits - expected).abs().mean() <= 0.05 * expected.abs().mean()


def test_it_is_chosen(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--precision int8`` where ONNX Runtime does not cover the model; a checkpoint without a language model is loaded as before."""
    tasks = load(generation.target, precision="int8")
    assert any(isinstance(module, Int8Linear) for module in tasks.engine.model.lm.modules())  # type: ignore[union-attr]
    assert tasks.caption(photos[0], max_new_tokens=4).text
    assert "ONNX Runtime does not cover" in capsys.readouterr().err
    cpu = torch.device("cpu")
    assert choose_dtype(generation.target, "int4", cpu) == torch.int8
    assert choose_dtype(generation.target, None, cpu) == torch.float32
    with pytest.raises(InputError, match="--precision int8 goes with one device: name one, or choose bf16"):
        placed_dtype("int8", cpu)
