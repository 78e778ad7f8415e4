"""``convert``: BLIP-2 checkpoints as LAVIS saves them, written here from random weights of ours, and read back."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_blip2 import WORDS, byte_tokenizer
from tiny_decoder import as_transformers
from torch import Tensor

from triptych import InputError, load
from triptych.checkpoints.config import CheckpointConfig, EncoderSpec
from triptych.checkpoints.format import load_checkpoint
from triptych.checkpoints.tables.language import OPT
from triptych.cli import main
from triptych.convert import blip2 as convert_blip2
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.opening import find_checkpoint
from triptych.engines.torch import TorchBlip2
from triptych.models import Blip2Model, blip2_search, load_blip2
from triptych.nn.configs import DecoderConfig, QFormerConfig, T5Config, ViTConfig
from triptych.nn.decoder import Decoder
from triptych.nn.t5 import T5
from triptych.nn.vit import ViT
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.tasks import Blip2Tasks
from triptych.tasks.blip2 import PhotoPrompt
from triptych.text.prompt import BLIP2_OPT, BLIP2_T5, DEFAULT_PROMPTS, INSTRUCT_BLIP
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import WordPieces

VIT = ViTConfig.blip2(dim=176, layers=2, heads=2, mlp_dim=40, patch_size=4, image_size=12, norm_after=False)
SIZES = {"dim": 128, "layers": 3, "heads": 2, "mlp_dim": 40, "queries": 5}
OPT_SIZES = {"dim": 24, "layers": 2, "heads": 2, "ffn_dim": 30, "max_positions": 128, "positions": "learned"}
OPT_STYLE = {
    "norm": "layer",
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
}

# Ours -> theirs, the first that fits; \1 is the layer.
RENAMED = {
    r"vision_encoder\.class_token": "visual_encoder.cls_token",
    r"vision_encoder\.positions": "visual_encoder.pos_embed",
    r"vision_encoder\.patches": "visual_encoder.patch_embed.proj",
    r"vision_encoder\.blocks\.(\d+)\.attention_norm": r"visual_encoder.blocks.\1.norm1",
    r"vision_encoder\.blocks\.(\d+)\.attention\.query\.bias": r"visual_encoder.blocks.\1.attn.q_bias",
    r"vision_encoder\.blocks\.(\d+)\.attention\.value\.bias": r"visual_encoder.blocks.\1.attn.v_bias",
    r"vision_encoder\.blocks\.(\d+)\.attention\.out": r"visual_encoder.blocks.\1.attn.proj",
    r"vision_encoder\.blocks\.(\d+)\.mlp_norm": r"visual_encoder.blocks.\1.norm2",
    r"vision_encoder\.blocks\.(\d+)\.up": r"visual_encoder.blocks.\1.mlp.fc1",
    r"vision_encoder\.blocks\.(\d+)\.down": r"visual_encoder.blocks.\1.mlp.fc2",
    r"vision_norm": "ln_vision",
    r"qformer\.query_tokens": "query_tokens",
    r"qformer\.word_embeddings": "Qformer.bert.embeddings.word_embeddings",
    r"qformer\.position_embeddings": "Qformer.bert.embeddings.position_embeddings",
    r"qformer\.norm": "Qformer.bert.embeddings.LayerNorm",
    r"qformer\.layers\.(\d+)\.self_attention\.attention\.out": r"Qformer.bert.encoder.layer.\1.attention.output.dense",
    r"qformer\.layers\.(\d+)\.self_attention\.norm": r"Qformer.bert.encoder.layer.\1.attention.output.LayerNorm",
    r"qformer\.layers\.(\d+)\.self_attention\.attention": r"Qformer.bert.encoder.layer.\1.attention.self",
    r"qformer\.layers\.(\d+)\.cross_attention\.attention\.out": r"Qformer.bert.encoder.layer.\1.crossattention.output.dense",
    r"qformer\.layers\.(\d+)\.cross_attention\.norm": r"Qformer.bert.encoder.layer.\1.crossattention.output.LayerNorm",
    r"qformer\.layers\.(\d+)\.cross_attention\.attention": r"Qformer.bert.encoder.layer.\1.crossattention.self",
    r"qformer\.layers\.(\d+)\.text_mlp\.up": r"Qformer.bert.encoder.layer.\1.intermediate.dense",
    r"qformer\.layers\.(\d+)\.text_mlp\.down": r"Qformer.bert.encoder.layer.\1.output.dense",
    r"qformer\.layers\.(\d+)\.text_mlp\.norm": r"Qformer.bert.encoder.layer.\1.output.LayerNorm",
    r"qformer\.layers\.(\d+)\.query_mlp\.up": r"Qformer.bert.encoder.layer.\1.intermediate_query.dense",
    r"qformer\.layers\.(\d+)\.query_mlp\.down": r"Qformer.bert.encoder.layer.\1.output_query.dense",
    r"qformer\.layers\.(\d+)\.query_mlp\.norm": r"Qformer.bert.encoder.layer.\1.output_query.LayerNorm",
    r"heads\.lm_dense": "Qformer.cls.predictions.transform.dense",
    r"heads\.lm_norm": "Qformer.cls.predictions.transform.LayerNorm",
    r"heads\.lm_bias": "Qformer.cls.predictions.bias",
    r"heads\.temperature": "temp",
    r"heads\.": "",
    r"projection": "opt_proj",
}


def in_lavis_layout(model: Blip2) -> dict[str, Tensor]:
    elsewhere = ("lm.", "vision_encoder.norm_before")  # EVA has no such norm
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(elsewhere)}
    theirs = {}
    for key, tensor in state.items():
        if block := re.fullmatch(r"vision_encoder\.(blocks\.\d+)\.attention\.(query|key|value)\.weight", key):
            joined = [state[f"vision_encoder.{block[1]}.attention.{x}.weight"] for x in ("query", "key", "value")]
            theirs[f"visual_encoder.{block[1]}.attn.qkv.weight"] = torch.cat(joined)
        elif not re.fullmatch(r"vision_encoder\.blocks\.\d+\.attention\.key\.bias", key):
            pattern = next(ours for ours in RENAMED if re.match(ours, key))
            theirs[re.sub(pattern, RENAMED[pattern], key, count=1)] = tensor
    for name in ("query_tokens", "visual_encoder.pos_embed", "visual_encoder.cls_token"):
        theirs[name] = theirs[name][None] if theirs[name].ndim == 2 else theirs[name][None, None]
    if model.heads:
        theirs["Qformer.cls.predictions.decoder.weight"] = theirs["Qformer.bert.embeddings.word_embeddings.weight"]
        theirs["Qformer.cls.predictions.decoder.bias"] = theirs["Qformer.cls.predictions.bias"]
        theirs["Qformer.bert.embeddings.position_ids"] = torch.arange(64)[None]
    return theirs


def randomised(model: Blip2) -> Blip2:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3 if parameter.ndim < 2 else 1.8 * parameter.shape[-1] ** -0.5)
            parameter.add_("norm" in name and name.endswith("weight"))
            if re.fullmatch(r"vision_encoder.*attention\.key\.bias", name):
                parameter.zero_()  # LAVIS's EVA has none
    return model.eval().requires_grad_(False)


def stage1() -> Blip2:
    torch.manual_seed(0)
    qformer = QFormerConfig(VIT.dim, **SIZES, vocab_size=len(WordPieces(WORDS)), max_positions=64)
    model = randomised(Blip2(Blip2Config(qformer, feature_dim=16), ViT(VIT), None))
    assert model.heads
    model.heads.temperature.data.fill_(0.05)
    return model


def stage2() -> tuple[Blip2, TextTokenizer]:
    torch.manual_seed(1)
    tokenizer = byte_tokenizer()
    lm = Decoder(DecoderConfig(len(tokenizer), **OPT_SIZES, **OPT_STYLE))
    qformer = QFormerConfig(VIT.dim, **SIZES, vocab_size=0)
    config = Blip2Config(qformer, feature_dim=None, instructed=False, writes=False)
    return randomised(Blip2(config, ViT(VIT), lm)), tokenizer


def save_opt(folder: Path, lm: Decoder, tokenizer: TextTokenizer) -> Path:
    """A directory as transformers saves OPT; its tokenizer begins a text with <begin>."""
    folder.mkdir()
    config = {"model_type": "opt", "vocab_size": lm.config.vocab_size, "hidden_size": 24, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "ffn_dim": 30, "max_position_embeddings": 128, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    state, theirs = lm.state_dict(), {}
    for ours, names in OPT.items():
        for layer in range(2):
            for kind in ("weight", "bias"):
                pieces = state.get(f"{ours.replace('*', str(layer))}.{kind}")
                for name, piece in zip(names, () if pieces is None else pieces.chunk(len(names)), strict=False):
                    theirs[f"{name.replace('*', str(layer))}.{kind}"] = piece.contiguous()
    save_file(theirs, folder / "model.safetensors")
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<end>", "eos_token": "<end>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(autouse=True)
def own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A short vocabulary in the place of BERT's, which LAVIS takes."""
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    monkeypatch.setattr(convert_blip2, "BERT_WORDS", tmp_path / "words.txt")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "optimizer": {}, "config": {"run": {"task": "x"}}, "scaler": None, "epoch": 3}, path)
    return path


def without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}


def eva(state: dict[str, Tensor], path: Path) -> Path:
    """The encoder alone, with all that LAVIS leaves out of it: a last block and a head."""
    prefix = "visual_encoder."
    alone = {key.removeprefix(prefix): tensor.half() for key, tensor in state.items() if key.startswith(prefix)}
    last = {key.replace("blocks.1.", "blocks.39."): torch.zeros(1) for key in alone if key.startswith("blocks.1.")}
    torch.save(alone | last | {"head.weight": torch.zeros(2, 3)}, path)
    return path


def test_first_stage(tmp_path: Path, photos: list[Image.Image]) -> None:
    """It matches and writes as the model that the file was made of."""
    original = stage1()
    state = in_lavis_layout(original)
    report = convert_checkpoint(saved(tmp_path / "blip2.pth", state), tmp_path / "ours")
    left_aside = {"Qformer.bert.embeddings.position_ids"}
    assert (set(report.mapped), report.missing, set(report.ignored)) == (state.keys() - left_aside, (), left_aside)
    ours = load(tmp_path / "ours", device="cpu")
    assert isinstance(ours, Blip2Tasks)
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours.engine.model.state_dict()[name], tensor), name
    config = CheckpointConfig(system="blip2", model=original.config, encoder=EncoderSpec("vit", stored=True, vit=VIT))
    blip2 = Blip2Model(original, WordPieces(WORDS), None, blip2_search(None, beams=5), config)
    expected = Blip2Tasks(TorchBlip2(blip2, torch.device("cpu")), "original")
    texts = ["a dog?", "two"]
    assert ours.match(photos, texts) == expected.match(photos, texts)
    mine, theirs = (
        ours.caption(photos, max_new_tokens=6),
        expected.caption(photos, max_new_tokens=6, length_penalty=1.0),
    )
    assert [(a.text, a.logprob) for a in mine] == [(a.text, a.logprob) for a in theirs]
    assert mine[0].text and ours.spec.prompts == DEFAULT_PROMPTS


def training_run(state: dict[str, Tensor]) -> dict[str, Any]:
    """As LAVIS saves while it trains on several GPUs."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    model = {f"module.{key}": torch.nn.Parameter(x, requires_grad=False) for key, x in state.items()}
    return {"model": model, "optimizer": optimizer, "config": SimpleNamespace(run=Path("x")), "scaler": {}, "epoch": 3}


@pytest.mark.parametrize("form", ["run.pth", "older.pth", "lightning.ckpt", "plain.safetensors"])
def test_the_first_stage_in_other_wrappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    state, path = in_lavis_layout(stage1()), tmp_path / form
    if path.suffix == ".safetensors":
        save_file({key: x.clone() for key, x in state.items()}, path)
    elif path.suffix == ".ckpt":
        torch.save({"state_dict": {f"model.{key}": x for key, x in state.items()}, "callbacks": {}}, path)
    else:
        torch.save(training_run(state), path, _use_new_zipfile_serialization=form == "run.pth")
    expected = convert_checkpoint(saved(tmp_path / "plain.pth", state), tmp_path / "plain")
    _, tensors = load_checkpoint(find_checkpoint(path))
    _, same = load_checkpoint(tmp_path / "plain")
    assert tensors.keys() == same.keys() and expected.mapped
    assert all(torch.equal(tensors[name], same[name]) for name in same)


@pytest.mark.parametrize("apart", [False, True])
def test_first_stage_over_clip(tmp_path: Path, apart: bool) -> None:
    """LAVIS's ViT-L, in the checkpoint or in a file of its own, which has one block more than is used."""
    torch.manual_seed(3)
    vit = ViT(ViTConfig(128, 2, 2, 40, 4, 12, "quick_gelu", norm_after=False, class_token=True))
    qformer = QFormerConfig(128, **SIZES, vocab_size=len(WordPieces(WORDS)), max_positions=64)
    original = randomised(Blip2(Blip2Config(qformer, feature_dim=16), vit, None))
    state = without(in_lavis_layout(original), "visual_encoder.")
    source = saved(tmp_path / "clip.pth", state if apart else state | in_open_clip_layout(vit, "visual_encoder."))
    vision = tmp_path / "clip_vit_L.pth"
    last = {"transformer.resblocks.23.ln_1.weight": torch.zeros(1), "proj": torch.zeros(2)}
    torch.save(in_open_clip_layout(vit, "") | last, vision)
    convert_checkpoint(source, tmp_path / "ours", vision=vision if apart else None)
    ours = load_blip2(tmp_path / "ours").model
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert ours.vision_encoder.config == vit.config


def in_open_clip_layout(vit: ViT, prefix: str) -> dict[str, Tensor]:
    own = vit.state_dict()
    theirs = {"class_embedding": own["class_token"], "positional_embedding": own["positions"]}
    names = {
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attention.out": "attn.out_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    pairs = {"patches": "conv1", "norm_before": "ln_pre"}
    for i in range(vit.config.layers):
        block, theirs_block = f"blocks.{i}", f"transformer.resblocks.{i}"
        pairs |= {f"{block}.{ours}": f"{theirs_block}.{name}" for ours, name in names.items()}
        for kind in ("weight", "bias"):
            joined = [own[f"{block}.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            theirs[f"{theirs_block}.attn.in_proj_{kind}"] = torch.cat(joined)
    for ours, name in pairs.items():
        theirs |= {f"{name}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias") if f"{ours}.{kind}" in own}
    return {prefix + name: tensor for name, tensor in theirs.items()}


def test_second_stage_with_its_frozen_parts_in_other_files(tmp_path: Path, photos: list[Image.Image]) -> None:
    original, tokenizer = stage2()
    assert original.lm
    original.vision_encoder.half().float()  # LAVIS's file has 16 bits
    state = in_lavis_layout(original)
    source = saved(tmp_path / "opt.pth", without(state, "visual_encoder."))
    vision = eva(state, tmp_path / "eva_vit_g.pth")
    lm = save_opt(tmp_path / "opt-tiny", original.lm, tokenizer)
    report = convert_checkpoint(source, tmp_path / "ours", vision=vision, lm=lm)
    assert (set(report.mapped), report.missing, report.ignored) == (state.keys(), (), ("visual_encoder.head.weight",))
    ours = load(tmp_path / "ours", device="cpu")
    assert isinstance(ours, Blip2Tasks)
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours.engine.model.state_dict()[name], tensor), name
    config, _ = load_checkpoint(tmp_path / "ours")
    assert config.lm and (config.lm.name, config.lm.eos) == ("opt-tiny", tuple(tokenizer.encode("\n")))
    assert ours.tokenizer.eos_ids == frozenset(tokenizer.encode("\n")) and ours.spec.prompts == BLIP2_OPT
    (row,) = ours.read([PhotoPrompt(ours.spec.prompts.caption, photos[:1])])
    [end] = tokenizer.eos_ids
    assert row.pieces[2] == [end, *tokenizer.encode("a photo of")]  # <end> begins a text, as </s> does for OPT
    soft = original.soft_prompt(
        original.read_photos(original.image_keys_values(original.encode(pixels(ours, photos[0])))).queries
    )
    torch.testing.assert_close(row.pieces[1], soft[0], atol=1e-5, rtol=1e-5)
    assert len({answer.text for answer in ours.caption(photos, beams=1)}) > 1
    assert ours.ask(photos[:2], "what?", ["yes", "no"]).scores


@pytest.mark.parametrize("instructed", [False, True])
def test_second_stage_with_t5(tmp_path: Path, photos: list[Image.Image], instructed: bool) -> None:
    """BLIP-2, and InstructBLIP whose Q-Former reads the prompt. LAVIS's T5 has an exact GELU, whatever its config says."""
    torch.manual_seed(2)
    tokenizer = byte_tokenizer()
    sizes = T5Config(len(tokenizer), 24, 2, 2, 2, 12, 30, activation="gelu", end_id=256)
    qformer = QFormerConfig(VIT.dim, **SIZES, vocab_size=len(WordPieces(WORDS)) if instructed else 0, max_positions=64)
    config = Blip2Config(qformer, feature_dim=None, instructed=instructed, writes=False)
    original = randomised(Blip2(config, ViT(VIT), T5(sizes)))
    state = {key.replace("opt_proj", "t5_proj"): x for key, x in in_lavis_layout(original).items()}
    source, lm = saved(tmp_path / "t5.pth", state), save_t5(tmp_path / "flan", original.lm, tokenizer)
    report = convert_checkpoint(source, tmp_path / "ours", lm=lm)
    assert (set(report.mapped), report.missing, report.ignored) == (state.keys(), (), ())
    ours = load(tmp_path / "ours", device="cpu")
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours.engine.model.state_dict()[name], tensor), name
    assert ours.engine.model.lm.config == sizes and ours.tokenizer.eos_ids == {256}
    assert ours.spec.prompts == (INSTRUCT_BLIP if instructed else BLIP2_T5)
    (row,) = ours.read([PhotoPrompt(ours.spec.prompts.caption, photos[:1])])
    assert row.pieces[2] == tokenizer.encode(ours.spec.prompts.caption.removeprefix("<image>"))  # no token begins it
    assert len({answer.text for answer in ours.caption(photos, beams=1)}) > 1
    answer = ours.ask(photos[0], "what?", ["yes", "no"], explain=True)
    assert answer.scores and answer.evidence and answer.evidence.maps.sum() > 0
    opt, other = stage2()
    with pytest.raises(InputError, match="goes with a T5 of width 24: give its directory"):
        convert_checkpoint(source, tmp_path / "other", lm=save_opt(tmp_path / "opt", opt.lm, other))


def save_t5(folder: Path, lm: T5, tokenizer: TextTokenizer) -> Path:
    folder.mkdir()
    config = {"model_type": "t5", "vocab_size": lm.config.vocab_size, "d_model": 24, "d_kv": 12, "d_ff": 30}
    config |= {"num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 256}))
    save_file(as_transformers(lm, "t5"), folder / "model.safetensors")
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def pixels(ours: Blip2Tasks, photo: Image.Image) -> Tensor:
    from triptych.io.images import pixel_values

    encoder = ours.engine.model.vision_encoder
    return pixel_values(photo, encoder.pixels)[None]


def test_a_checkpoint_without_prompts_is_asked_as_before(tmp_path: Path) -> None:
    convert_checkpoint(saved(tmp_path / "blip2.pth", in_lavis_layout(stage1())), tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("prompts") == asdict(DEFAULT_PROMPTS)
    path.write_text(json.dumps(config))
    assert load_blip2(tmp_path / "ours").prompts == DEFAULT_PROMPTS


Edit = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("query_tokens"), "has no query_tokens"),
        (lambda s: s.update(query_tokens=torch.zeros(())), "its image encoder is neither EVA's|not a BLIP-2"),
        (lambda s: s.update({"t5_proj.weight": torch.zeros(2)}), "leaves out its language model: .* --lm"),
        (lambda s: s.update({"opt_proj.weight": torch.zeros(2)}), "leaves out its language model: .* --lm"),
        (
            lambda s: [s.pop(k) for k in [*s] if k.startswith("visual_encoder.")],
            "leaves out its image encoder: .* --vision",
        ),
        (lambda s: s.pop("visual_encoder.cls_token"), "its image encoder is neither EVA's"),
        (lambda s: s.pop("visual_encoder.blocks.1.norm1.bias"), "missing vision_encoder.blocks.1.attention_norm.bias"),
        (lambda s: s.pop("itm_head.weight"), "missing heads.itm_head.weight"),
        (lambda s: s.update({"temp": torch.zeros(2)}), r"heads.temperature is \(2,\) instead of \(\)"),
        (
            lambda s: s.update({"Qformer.bert.encoder.layer.999999999.intermediate.dense.bias": torch.zeros(1)}),
            "missing",
        ),
        (lambda s: s.pop("ln_vision.bias"), "missing vision_norm.bias"),
        (
            lambda s: s.update({"visual_encoder.patch_embed.proj.weight": torch.zeros(3, 3)}),
            "not a BLIP-2 of the known layout",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path: Path, edit: Edit, message: str) -> None:
    state = in_lavis_layout(stage1())
    edit(state)
    with pytest.raises(InputError, match=message) as refusal:
        convert_checkpoint(saved(tmp_path / "blip2.pth", state), tmp_path / "ours")
    assert "\n" not in str(refusal.value) and not (tmp_path / "ours").exists()


def test_options_that_do_not_go_with_the_file_are_refused(tmp_path: Path) -> None:
    state = in_lavis_layout(stage1())
    source, vision = saved(tmp_path / "blip2.pth", state), eva(state, tmp_path / "eva.pth")
    with pytest.raises(InputError, match="has its own image encoder: leave out --vision"):
        convert_checkpoint(source, tmp_path / "ours", vision=vision)
    with pytest.raises(InputError, match=r"is of the first stage, .* leave out --lm"):
        convert_checkpoint(source, tmp_path / "ours", lm=tmp_path)
    with pytest.raises(InputError, match="word pieces, but its Q-Former knows"):
        (tmp_path / "words.txt").write_text("\n".join([*WORDS, "more", "and more"]))
        convert_checkpoint(source, tmp_path / "ours")
    with pytest.raises(InputError, match="has no query_tokens"):
        convert_checkpoint(vision, tmp_path / "ours")


class Calls:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"query_tokens": Calls()}}, tmp_path / "blip2.pth")
    with pytest.raises(InputError, match="which is refused"):
        convert_checkpoint(tmp_path / "blip2.pth", tmp_path / "ours")
    assert not (tmp_path / "made").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    state = in_lavis_layout(stage1())
    source = saved(tmp_path / "blip2.pth", without(state, "visual_encoder."))
    target = tmp_path / "ours"

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["triptych", "convert", *map(str, (source, target, *arguments))])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code or 0, out=out, err=err)

    refused = run()
    assert refused.code == 2 and "--vision" in refused.err and refused.err.count("\n") == 1
    done = run("--vision", eva(state, tmp_path / "eva.pth"), "--half", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out).keys() == {"target", "mapped", "missing", "ignored"}
    assert load(target, device="cpu").info()["encoder"] == "vit"
