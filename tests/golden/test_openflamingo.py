"""Flamingo against what open_flamingo's own code returned on tiny random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from triptych.checkpoints.tables.flamingo import OPENFLAMINGO, translated_flamingo
from triptych.checkpoints.tables.keys import OPEN_CLIP_VISION, load, translated
from triptych.checkpoints.tables.language import OPT
from triptych.checkpoints.tables.language import translated as translate_lm
from triptych.generate import Search, generate
from triptych.nn import masks
from triptych.nn.configs import DecoderConfig, ViTConfig
from triptych.nn.decoder import Decoder
from triptych.nn.vit import ViT
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo, GatedBlock, Resampler, flamingo_prompt


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(Path(__file__).with_name(f"openflamingo_{name}.safetensors"), "pt") as file:  # type: ignore[no-untyped-call]
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def state_of(golden: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("name", ["plain", "timed"])
def test_resampler(name: str) -> None:
    golden, about = read(f"resampler_{name}")
    c = about["config"]
    config = FlamingoConfig(
        c["dim"],
        image_id=0,
        latents=c["num_latents"],
        resampler_layers=c["depth"],
        heads=c["heads"],
        head_dim=c["dim_head"],
        ffn_factor=c["ff_mult"],
        max_pictures=c.get("max_num_media"),
        max_frames=c.get("max_num_frames"),
    )
    resampler = Resampler(config)
    state = state_of(golden, "perceiver.")
    assert load(resampler, state, OPENFLAMINGO, "resampler").ignored == ()
    x = golden["in/x"]
    numbers = torch.arange(1, 4).repeat(len(x))
    close(resampler(x.flatten(0, 1), numbers).view_as(golden["out/latents"]), golden["out/latents"])


@pytest.mark.parametrize(("name", "look"), [("immediate", "last"), ("all", "all")])
def test_gated_block(name: str, look: Any) -> None:
    golden, about = read(f"gated_{name}")
    c = about["config"]
    latents = golden["in/media"].shape[2]
    config = FlamingoConfig(
        c["dim_visual"],
        0,
        latents=latents,
        heads=c["heads"],
        head_dim=c["dim_head"],
        ffn_factor=c["ff_mult"],
        look=look,
    )
    block = GatedBlock(config, DecoderConfig(1, dim=c["dim"], layers=1, heads=1, ffn_dim=1))
    state = state_of(golden, "lang_encoder.gated_cross_attn_layers.0.")
    assert load(block, state, OPENFLAMINGO, "xattn.0").ignored == ()
    media, x = golden["in/media"], golden["in/x"]
    text_time = golden["in/media_locations"].cumsum(1)
    numbers = torch.arange(1, media.shape[1] + 1).expand(len(media), -1)
    seen = block.attention.keys_values(media.flatten(1, 2))
    mask = masks.media(text_time, numbers, latents, look)
    full = block(x, seen, mask)
    comparable = text_time > 0 if look == "all" else torch.ones_like(text_time, dtype=torch.bool)
    close(full[comparable], golden["out/full"][comparable])
    close(block.attention(block.norm(x), seen, mask)[comparable], golden["out/attn"][comparable])
    if look == "all":  # theirs looks evenly at pictures that are still to come
        assert not block.attention(block.norm(x), seen, mask)[~comparable].any()
    close(block(x[:, -2:], seen, mask[:, -2:]), golden["out/last2.cached"])


@pytest.fixture(scope="module")
def whole() -> tuple[Flamingo, dict[str, Tensor]]:
    golden, about = read("opt")
    c = about["config"]
    state = state_of(golden)
    sizes = DecoderConfig(
        c["vocab_size"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        ffn_dim=c["ffn_dim"],
        max_positions=c["max_position_embeddings"],
        positions="learned",
        norm="layer",
        activation="relu",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
    )
    vision = ViT(ViTConfig(dim=32, layers=2, heads=4, mlp_dim=64, patch_size=8, image_size=32, activation="gelu"))
    ours, every, left = translated_flamingo(state)
    model = Flamingo(FlamingoConfig(32, about["media_token_id"], every=every), vision, Decoder(sizes))
    left = {key.replace("old_decoder_blocks", "model.decoder.layers"): state[key] for key in left}
    left["lang_encoder.model.decoder.embed_tokens.weight"] = left["lang_encoder.lm_head.weight"]
    lm, _ = translate_lm({key.removeprefix("lang_encoder."): x for key, x in left.items()}, OPT, sizes)
    encoder, _ = translated({key.replace("vision_encoder.", "visual."): x for key, x in left.items()}, OPEN_CLIP_VISION)
    model.load_state_dict({**ours, **{f"lm.{key}": x for key, x in lm.items()}, **encoder})
    return model.eval().requires_grad_(False), golden


def test_whole_model(whole: tuple[Flamingo, dict[str, Tensor]]) -> None:
    model, golden = whole
    pixels = golden["in/vision_x"]
    features = model.encode(pixels.flatten(0, 2))
    close(features, golden["out/vision.tokens"])
    tokens = model.resampler(features)
    close(tokens.view_as(golden["out/latents"]), golden["out/latents"])
    ids, mask = golden["in/input_ids"], golden["in/attention_mask"].bool()
    media = model.media(tokens, [3, 3])
    gated = []
    handles = [block.register_forward_hook(lambda *a: gated.append(a[2])) for block in model.xattn]
    logits = model.lm.logits(model(ids, media, mask))
    for handle in handles:
        handle.remove()
    for i, found in enumerate(gated):
        close(found[mask], golden[f"out/gated.{i}"][mask])
    close(logits[mask], golden["out/logits"][mask])
    labels = golden["in/labels"]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(loss, golden["out/loss"])


def test_tail_over_cached_pictures(whole: tuple[Flamingo, dict[str, Tensor]]) -> None:
    """More text over the pictures of the prompt, which are not given again."""
    model, golden = whole
    media = model.media(model.resampler(model.encode(golden["in/vision_x"].flatten(0, 2))), [3, 3])
    text_time = (golden["in/input_ids"] == model.config.image_id).sum(1)
    last = media.with_number(text_time)
    x, place = model.lm.embed_inputs(golden["in/tail_ids"])
    for gated, seen, block in zip(model.xattn, last.blocks, model.lm.blocks, strict=True):
        x = block(gated(x, seen, None), place)
    close(model.lm.logits(model.lm.final_hidden(x)), golden["out/cached_media.logits"])


@pytest.mark.parametrize(("beams", "name"), [(1, "greedy"), (3, "beam3")])
def test_generated_ids(whole: tuple[Flamingo, dict[str, Tensor]], beams: int, name: str) -> None:
    model, golden = whole
    ids, mask = golden["in/input_ids"], golden["in/attention_mask"].bool()
    rows = [row[shown].tolist() for row, shown in zip(ids, mask, strict=True)]
    tokens = model.resampler(model.encode(golden["in/vision_x"].flatten(0, 2))).unflatten(0, (2, 3))
    counts = (ids == model.config.image_id).sum(1).tolist()
    shown = torch.cat([row[:count] for row, count in zip(tokens, counts, strict=True)])
    prompt = flamingo_prompt(rows, shown, counts, pad_id=1)
    found = generate(model, prompt, Search(frozenset(), max_new_tokens=10, beams=beams))
    expected = golden[f"out/{name}.ids"][:, ids.shape[1] :].tolist()
    assert [list(hypotheses[0].ids) for hypotheses in found] == expected
