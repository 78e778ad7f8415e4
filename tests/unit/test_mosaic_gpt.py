"""``mosaic_gpt``, the language model of OpenFlamingo-3B, against its formulas written out: transformers does not have it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_blip2 import byte_tokenizer
from tiny_openflamingo import WORDS, bridge, saved, tower
from torch import Tensor

from triptych.checkpoints.language_models import load_language_model
from triptych.convert.checkpoint import convert_checkpoint
from triptych.models import load_flamingo

DIM, LAYERS, HEADS = 24, 2, 3
IDS = [5, 250, 17, 17, 3, 99, 150]
CONFIG = {
    "model_type": "mosaic_gpt",
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_clip_qkv": None,
    "attn_impl": "torch",
    "attn_qk_ln": True,
    "d_model": DIM,
    "logit_scale": None,
    "low_precision_layernorm": True,
    "max_seq_len": 64,
    "mlp_ratio": 4,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "no_bias": True,
    "prefix_lm": False,
    "softmax_scale": None,
    "vocab_size": WORDS,
}


def weights(biases: bool, qk_ln: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"attn.Wqkv": (3 * DIM, DIM), "attn.out_proj": (DIM, DIM), "ln_1": (DIM,), "ln_2": (DIM,)}
    shapes |= {"mlp.mlp_up": (4 * DIM, DIM), "mlp.mlp_down": (DIM, 4 * DIM)}
    if qk_ln:
        shapes |= {"attn.q_ln": (DIM,), "attn.k_ln": (DIM,)}
    state = {"transformer.wte.weight": torch.randn(WORDS, DIM)}
    names = {f"transformer.blocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in {**names, "transformer.ln_f": (DIM,)}.items():
        state[f"{name}.weight"] = torch.randn(shape) * (1 if len(shape) == 1 else 0.3)
        if biases:
            state[f"{name}.bias"] = torch.randn(shape[0])
    return state


def logits(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in state:
            return x
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state.get(f"{name}.bias", torch.zeros(1))

    x, d = state["transformer.wte.weight"][ids], DIM // HEADS
    slopes = [2**-4, 2**-8, 2**-2]  # three heads: the slopes of four, every second first
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.Wqkv").chunk(3, -1)
        q, k = norm(q, f"{block}.attn.q_ln"), norm(k, f"{block}.attn.k_ln")
        mixed = torch.zeros_like(x)
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            for t in range(len(ids)):
                scores = [float(q[t, part] @ k[s, part]) / math.sqrt(d) - slopes[h] * (t - s) for s in range(t + 1)]
                mixed[t, part] = torch.tensor(scores).softmax(0) @ v[: t + 1, part]
        x = x + linear(mixed, f"{block}.attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.mlp_up")), f"{block}.mlp.mlp_down")
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T


def directory(path: Path, state: dict[str, Tensor], **settings: object) -> Path:
    """As MosaicML publishes it."""
    path.mkdir()
    torch.save(state, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(CONFIG | settings))
    byte_tokenizer().tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return path


@pytest.mark.parametrize(("biases", "qk_ln"), [(False, True), (True, False), (True, True)])
def test_logits(biases: bool, qk_ln: bool, tmp_path: Path) -> None:
    state = weights(biases, qk_ln)
    loaded = load_language_model(directory(tmp_path / "lm", state, no_bias=not biases, attn_qk_ln=qk_ln))
    assert not loaded.report.ignored and not loaded.report.missing
    close(loaded.decoder.logits(loaded.decoder(torch.tensor([IDS])))[0], logits(state, IDS))


def close(ours: Tensor, expected: Tensor) -> None:
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_openflamingo_3b(tmp_path: Path) -> None:
    """Its gates are shut here, so the converted model writes as the language model alone."""
    state = weights(False, True)
    checkpoint = bridge("transformer.blocks", LAYERS) | {f"vision_encoder.{key}": x for key, x in tower().items()}
    embeddings = torch.cat([state["transformer.wte.weight"], torch.randn(2, DIM)])
    checkpoint |= {"lang_encoder.transformer.wte.weight": embeddings}
    lm = directory(tmp_path / "mpt-1b", state)
    convert_checkpoint(saved(tmp_path / "checkpoint.pt", checkpoint), tmp_path / "ours", lm=lm)
    model = load_flamingo(tmp_path / "ours").model
    assert model.config.image_id == WORDS + 1 and len(model.xattn) == 1
    close(model.lm.logits(model(torch.tensor([IDS])))[0, :, :WORDS], logits(state, IDS))
