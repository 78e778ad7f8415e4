"""Published language models in 8-bit integers on torch: half the memory of 16 bits, nearly the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_blip2_t5_transformers import Pair as T5Pair
from test_blip2_t5_transformers import pair as t5  # noqa: F401
from test_blip2_transformers import Pair, generation, instruct, photos  # noqa: F401
from test_idefics_transformers import Idefics, idefics  # noqa: F401

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


PRECISIONS = pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])


def check_texts(whole: Any, precision: str, photos: list[Image.Image]) -> None:  # noqa: F811
    """With beams and a question, too; a text is nearly as likely as in fp32."""
    tasks: Any = load(whole.name, device="cpu", precision=precision)
    assert {p.dtype for p in tasks.engine.model.parameters()} <= {torch.bfloat16, torch.float16}
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "repetition_penalty": 1.0}
    answers, expected = (
        [*model.caption(photos[:2], beams=3, **settings), model.ask(photos[0], "what?", **settings)]
        for model in (tasks, whole)
    )
    for answer, other in zip(answers, expected, strict=True):
        assert answer.text and abs(answer.logprob - other.logprob) < (6 if precision == "int8" else 3)


@PRECISIONS
@pytest.mark.parametrize("name", ["generation", "instruct"])
def test_texts(name: str, precision: str, request: pytest.FixtureRequest, photos: list[Image.Image]) -> None:  # noqa: F811
    check_texts(request.getfixturevalue(name).ours, precision, photos)


@PRECISIONS
def test_texts_of_a_t5(t5: T5Pair, precision: str, photos: list[Image.Image]) -> None:  # noqa: F811
    check_texts(t5.ours, precision, photos)


@PRECISIONS
def test_texts_of_an_idefics(idefics: Idefics, precision: str, photos: list[Image.Image]) -> None:  # noqa: F811
    check_texts(idefics.ours, precision, photos)


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
