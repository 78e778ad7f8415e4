"""Products of the language model: how a weight lies in memory, and its packed copy, must not show in the results."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny_decoder import CONFIGS, LLAMA, ids, random_decoder
from torch import Tensor

from triptych.checkpoints.config import LanguageModelSpec
from triptych.checkpoints.language_models import build
from triptych.engines.torch import common
from triptych.generate import Search, generate
from triptych.models import in_bfloat16
from triptych.nn.decoder import Decoder
from triptych.nn.linear import CpuProduct, Linear

ONEDNN = torch.backends.mkldnn.is_available()


@pytest.fixture(params=CONFIGS, scope="module")
def lm(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(CONFIGS[request.param])


def packs(model: torch.nn.Module) -> int:
    return sum(part._packed is not None for part in model.modules() if isinstance(part, CpuProduct))


def loaded(lm: Decoder) -> Decoder:
    return build(lm.config, lm.state_dict(), "the test")


def plain_logits(lm: Decoder, inputs: Tensor) -> Tensor:
    with torch.enable_grad():
        return lm.logits(lm(inputs))


@torch.no_grad()
def test_steps_of_several_texts_are_packed(lm: Decoder) -> None:
    model, text = loaded(lm), ids(3, 5)
    expected = plain_logits(model, text)
    for rows in (1, 3):
        logits, cache = model.prefill(text[:rows, :4])
        torch.testing.assert_close(logits, expected[:rows, 3])
        torch.testing.assert_close(model.step(text[:rows, 4], cache)[0], expected[:rows, 4])
        assert (packs(model) > 0) == (ONEDNN and rows > 1)
    torch.testing.assert_close(model.logits(model(text)), expected)


def test_loading_lays_out_wide_weights() -> None:
    tensors = random_decoder(LLAMA).state_dict()
    model = build(LLAMA, tensors, "the test")
    for module in model.modules():
        if isinstance(module, CpuProduct):
            rows, columns = module.weight.shape
            assert module.weight.stride() == ((1, rows) if rows >= columns else (columns, 1))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


CHANGES: dict[str, Callable[[Linear], object]] = {
    "in place": lambda layer: layer.weight.mul_(2),
    "other data": lambda layer: setattr(layer.weight, "data", torch.randn(6, 4)),
    "other parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.randn(6, 4))),
    "loaded": lambda layer: layer.load_state_dict({"weight": torch.randn(6, 4)}),
    "assigned": lambda layer: layer.load_state_dict({"weight": torch.randn(6, 4)}, assign=True),
    "moved": lambda layer: layer.double().apply(lambda part: part.weight.data.mul_(2)).float(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_weight_is_packed_anew(change: str) -> None:
    layer, x = Linear(4, 6, bias=False), torch.randn(3, 1, 4)
    before = layer(x)
    CHANGES[change](layer)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
    assert not torch.allclose(layer(x), before)


@torch.no_grad()
def test_the_packed_copy_is_no_part_of_the_model(lm: Decoder) -> None:
    model, text = loaded(lm), ids(2, 3)
    generate(model, text, Search(eos=frozenset(), max_new_tokens=3))
    assert (packs(model) > 0) == ONEDNN and list(model.state_dict()) == list(lm.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert packs(twin) == 0
        torch.testing.assert_close(plain_logits(twin, text), plain_logits(model, text))
    assert packs(model.double()) == 0


@pytest.mark.parametrize(("free", "kept"), [(None, True), (1 << 40, True), (1 << 10, False)])
def test_no_copies_where_they_would_take_the_memory(
    lm: Decoder, monkeypatch: pytest.MonkeyPatch, free: int | None, kept: bool
) -> None:
    monkeypatch.setattr(common, "bytes_available", lambda device: free)
    model = common.on_device(loaded(lm), torch.device("cpu"))
    assert {part.keeps_packed for part in model.modules() if isinstance(part, CpuProduct)} == {kept}
    generate(model, ids(2, 3), Search(eos=frozenset(), max_new_tokens=2))
    assert (packs(model) > 0) == (kept and ONEDNN)


def test_packed_only_in_fp32_without_gradients(lm: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = loaded(lm), ids(3, 1)
    plain_logits(model, text)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.logits(model(text)).dtype == torch.bfloat16
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        model(text)
    with torch.no_grad():
        copy.deepcopy(model).double()(text)
        with torch.inference_mode():  # its tensors do not count their changes
            of_inference = copy.deepcopy(model)
        torch.testing.assert_close(of_inference(text), model.double()(text).float())
    assert packs(model) == packs(of_inference) == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_pass_the_frozen_model(lm: Decoder, autocast: bool) -> None:
    """Those by the soft prompt, after a run that packed the weights, against the same in float64."""
    model, text = loaded(lm), ids(2, 4)
    torch.manual_seed(4)
    soft = torch.randn(2, 3, lm.config.embed_width, requires_grad=True)
    generate(model, soft.detach(), Search(eos=frozenset(), max_new_tokens=3))
    assert (packs(model) > 0) == ONEDNN

    def gradient(model: Decoder, prompt: Tensor) -> Tensor:
        logits = model.logits(model(torch.cat([prompt, model.embed(text)], 1))[:, 2:-1])
        [by_prompt] = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), text.flatten()), prompt)
        return by_prompt

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = gradient(model, soft)
    expected = gradient(model.double(), soft.detach().double().requires_grad_())
    assert (ours - expected).abs().max() <= (0.1 if autocast else 1e-4) * expected.abs().max()


def test_a_frozen_model_trains_in_bfloat16_unless_a_checkpoint_holds_it(lm: Decoder) -> None:
    text, held = ids(2, 4), copy.deepcopy(lm)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = lm.logits(lm(text))
        in_bfloat16(lm, LanguageModelSpec("smollm2-135m", stored=False))
        torch.testing.assert_close(lm.logits(lm(text)), expected, atol=0, rtol=0)
    assert {m.weight.dtype for m in lm.modules() if isinstance(m, Linear)} == {torch.bfloat16}
    in_bfloat16(held, LanguageModelSpec("held", stored=True, decoder=held.config, eos=(1,)))
    assert {p.dtype for p in held.parameters()} == {torch.float32}
