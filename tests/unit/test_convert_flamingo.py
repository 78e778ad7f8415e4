"""``convert``: OpenFlamingo's checkpoints, in the layouts of versions 1 and 2, over language models as transformers saves them."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_blip2 import byte_tokenizer
from tiny_openflamingo import WIDTH, WORDS, State, saved, tower
from tiny_openflamingo_over import OVER, SMALL, flamingo_state, language_model, lm_directory
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from triptych import InputError, load
from triptych.checkpoints.format import load_checkpoint
from triptych.cli import main
from triptych.convert.checkpoint import convert_checkpoint
from triptych.models import load_flamingo
from triptych.systems.flamingo import Flamingo
from triptych.tasks import FlamingoTasks
from triptych.text.prompt import END, IMAGE

GOLDEN = Path(__file__).parents[1] / "golden" / "openflamingo_opt.safetensors"
CLIP_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_": ".layer_norm",
    ".attn.out_proj": ".self_attn.out_proj",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}


def clip_directory(folder: Path, state: State, prefix: str = "", **config: Any) -> Path:
    """An image encoder of open_clip as a directory of transformers'."""
    theirs = {}
    for key, tensor in state.items():
        for old, new in CLIP_NAMES.items():
            key = key.replace(old, new)
        if packed := re.fullmatch(r"(.*)\.attn\.in_proj_(\w+)", key):
            for x, piece in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{prefix}{packed[1]}.self_attn.{x}_proj.{packed[2]}"] = piece.contiguous()
        elif key != "proj":
            theirs[prefix + key] = tensor
    folder.mkdir()
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# The golden model


@pytest.fixture(scope="module")
def golden() -> tuple[State, dict[str, Any]]:
    with safe_open(GOLDEN, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


@pytest.mark.parametrize("nested", [False, True], ids=["published", "training"])
def test_the_golden_model(tmp_path: Path, golden: tuple[State, dict[str, Any]], nested: bool) -> None:
    """Published: the language model comes from its directory. From training: all its weights are in the file, which come first."""
    tensors, about = golden
    whole = {key.removeprefix("state/"): tensor for key, tensor in tensors.items() if key.startswith("state/")}
    whole["lang_encoder.model.decoder.embed_tokens.weight"] = whole["lang_encoder.lm_head.weight"]
    vision = {k.removeprefix("vision_encoder."): whole.pop(k) for k in [*whole] if k.startswith("vision_encoder.")}
    kept = "perceiver", "gated_cross", "embed_tokens"
    state = whole if nested else {key: x for key, x in whole.items() if any(part in key for part in kept)}

    lm = transformers.OPTForCausalLM(transformers.OPTConfig(**about["config"] | {"vocab_size": 98}))
    if not nested:
        layers = {key.replace("old_decoder_blocks", "model.decoder.layers"): tensor for key, tensor in whole.items()}
        own = {key.removeprefix("lang_encoder."): x for key, x in layers.items() if "gated" not in key}
        lm.load_state_dict({key: x[:98] if len(x) == 100 else x for key, x in own.items() if "perceiver" not in key})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:97]
    tokenizer = Tokenizer(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "<end>": 97}, []))
    heads = about["config"]["num_attention_heads"]
    clip = {"model_type": "clip_vision_model", "num_attention_heads": heads, "hidden_act": "gelu"}
    report = convert_checkpoint(
        saved(tmp_path / "checkpoint.pt", state, nested),
        tmp_path / "ours",
        vision=clip_directory(tmp_path / "clip", vision, **clip),
        lm=lm_directory(tmp_path / "opt-tiny", lm, tokenizer),
    )
    head = {"lang_encoder.lm_head.weight"} if nested else set()  # the word embeddings once more
    assert (set(report.mapped), report.missing, set(report.ignored)) == (state.keys() - head, (), head)

    ours = load_flamingo(tmp_path / "ours")
    config = ours.model.config
    assert (ours.end_id, config.image_id) == (about["eoc_token_id"], about["media_token_id"])
    assert (config.every, config.resampler_layers, config.latents, config.heads) == (1, 6, 64, 8)
    assert (ours.search.beams, ours.search.eos, ours.search.banned) == (3, {98}, {99})
    bare = ours.model.encode(tensors["in/vision_x"].flatten(0, 2))
    normed = nn.functional.layer_norm(bare, (32,), vision["ln_post.weight"], vision["ln_post.bias"])
    torch.testing.assert_close(normed, tensors["out/vision.tokens"], atol=1e-4, rtol=0)
    media = ours.model.media(ours.model.resampler(tensors["out/vision.tokens"]), [3, 3])
    ids, mask = tensors["in/input_ids"], tensors["in/attention_mask"].bool()
    logits = ours.model.lm.logits(ours.model(ids, media, mask))
    torch.testing.assert_close(logits[mask], tensors["out/logits"][mask], atol=1e-4, rtol=0)


# Version 2 over other language models


@pytest.mark.parametrize("kind", OVER)
def test_with_shut_gates_it_is_the_language_model(tmp_path: Path, kind: str) -> None:
    lm = language_model(kind)
    state = flamingo_state(kind, lm)
    directory = lm_directory(tmp_path / kind, lm, byte_tokenizer().tokenizer)
    report = convert_checkpoint(saved(tmp_path / "checkpoint.pt", state), tmp_path / "ours", lm=directory)
    left = {"vision_encoder.proj", "vision_encoder.ln_post.weight", "vision_encoder.ln_post.bias"}
    assert (set(report.mapped), report.missing, set(report.ignored)) == (state.keys() - left, (), left)

    ours = load_flamingo(tmp_path / "ours")
    assert (ours.model.config.every, ours.model.config.heads, ours.model.config.ffn_factor) == (2, 2, 2)
    assert (ours.end_id, ours.model.config.image_id) == (WORDS, WORDS + 1) and ours.tokenizer.eos_ids == {WORDS}
    assert ours.model.gates() == [(0.0, 0.0)] * 2 and ours.model.vision_encoder.config.activation == "quick_gelu"
    ids = torch.randint(0, WORDS, (2, 12))
    ids[:, 3] = ours.model.config.image_id
    media = ours.model.media(torch.randn(2, 3, WIDTH), [1, 1])
    logits = ours.model.lm.logits(ours.model(ids, media))
    lm.resize_token_embeddings(WORDS + 2, mean_resizing=False)
    lm.get_input_embeddings().weight.copy_(state[f"lang_encoder.{OVER[kind][2]}.weight"])
    torch.testing.assert_close(logits[..., :WORDS], lm(ids).logits[..., :WORDS], atol=1e-4, rtol=1e-4)
    added = ours.model.lm.state_dict().get("head.weight", torch.empty(0, 24))[WORDS:]
    assert torch.equal(added, {"mpt": added, "llama": torch.zeros(2, 24), "gpt_neox": torch.ones(2, 24)}[kind])


@pytest.fixture
def llama(tmp_path: Path) -> tuple[State, Path]:
    lm = language_model("llama")
    return flamingo_state("llama", lm), lm_directory(tmp_path / "llama", lm, byte_tokenizer().tokenizer)


def without(state: State, prefix: str) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}


class Node(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def program(state: State) -> Node:
    """A module with these tensors, as OpenAI's TorchScript has them."""
    root = Node()
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        module: nn.Module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, Node())
            module = module.get_submodule(name)
        module.register_buffer(leaf, tensor)
    return root


@pytest.mark.parametrize("form", ["clip.pt", "clip.bin", "clip.safetensors", "clip", "ViT-L-14.pt"])
def test_the_image_encoder_in_another_file(tmp_path: Path, llama: tuple[State, Path], form: str) -> None:
    state, lm = llama
    convert_checkpoint(saved(tmp_path / "whole.pt", state), tmp_path / "whole", lm=lm)
    named, vision = {f"visual.{key}": tensor for key, tensor in tower().items()}, tmp_path / form
    if form == "clip":
        clip_directory(vision, tower(), "vision_model.", model_type="clip", vision_config={"num_attention_heads": 1})
        colours = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
        (vision / "preprocessor_config.json").write_text(json.dumps(colours))
    elif form == "ViT-L-14.pt":
        whole = named | {"token_embedding.weight": torch.zeros(3, 2), "input_resolution": torch.tensor(12)}
        torch.jit.save(torch.jit.script(program(whole)), vision)
    elif form == "clip.safetensors":
        save_file(named | {"logit_scale": torch.zeros(())}, vision)
    else:
        inner = {f"module.{key}": tensor.half() for key, tensor in named.items()}
        torch.save({"state_dict": inner} if form == "clip.pt" else named, vision)
    source = saved(tmp_path / "checkpoint.pt", without(state, "vision_encoder."))
    report = convert_checkpoint(source, tmp_path / "ours", vision=vision, lm=lm)
    assert set(report.mapped) == without(state, "vision_encoder.").keys() and report.ignored == ()
    (config, ours), (other, whole) = load_checkpoint(tmp_path / "ours"), load_checkpoint(tmp_path / "whole")
    assert config.encoder.vit == other.encoder.vit and ours.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(ours[name].float(), tensor, atol=2e-3 if form == "clip.pt" else 0, rtol=0)
    assert config.encoder.mean == ((0.5, 0.4, 0.3) if form == "clip" else other.encoder.mean)


def test_a_language_model_that_has_the_two_tokens(tmp_path: Path, llama: tuple[State, Path]) -> None:
    """Then the checkpoint need not have word embeddings; without the tokens it must."""
    state, lm = llama
    source = saved(tmp_path / "checkpoint.pt", without(state, "lang_encoder.model.embed_tokens."))
    with pytest.raises(InputError, match=rf"has no word embeddings: give with --lm .* {re.escape(END)} and {IMAGE}"):
        convert_checkpoint(source, tmp_path / "ours", lm=lm)
    tokenizer = byte_tokenizer().tokenizer
    tokenizer.add_special_tokens([IMAGE, END])
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | {"vocab_size": 320}, intermediate_size=30))
    convert_checkpoint(source, tmp_path / "ours", lm=lm_directory(tmp_path / "grown", peer, tokenizer))
    ours = load_flamingo(tmp_path / "ours")
    assert (ours.model.config.image_id, ours.end_id) == (WORDS, WORDS + 1)
    assert torch.equal(ours.model.lm.embedding.weight, peer.model.embed_tokens.weight)


def test_a_text_begins_as_the_language_model_expects(tmp_path: Path, llama: tuple[State, Path]) -> None:
    state, lm = llama
    settings = {"bos_token": "<end>", "eos_token": "<end>", "add_bos_token": True}
    (lm / "tokenizer_config.json").write_text(json.dumps(settings))
    convert_checkpoint(saved(tmp_path / "checkpoint.pt", state), tmp_path / "ours", lm=lm, half=True)
    ours = load(tmp_path / "ours", device="cpu")
    assert isinstance(ours, FlamingoTasks) and isinstance(ours.engine.model, Flamingo)
    photo = Image.new("RGB", (20, 30), (200, 30, 90))
    row = ours.prompts.row(f"{IMAGE}a{END}", [photo])
    assert row.input_ids == [WORDS - 1, WORDS + 1, *ours.spec.tokenizer.encode("a"), WORDS]
    assert row.signature[0] == WORDS - 1 and len(row.signature) == 4
    assert ours.caption(photo, max_new_tokens=3).logprob < 0


# What cannot be converted

GATE = "lang_encoder.model.layers.1.gated_cross_attn_layer."
Edit = Callable[[State], Any]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("perceiver.latents"), "has no query_tokens and no perceiver.latents"),
        (lambda s: s.update({"perceiver.latents": torch.zeros(3)}), "not an OpenFlamingo of the known layout"),
        (lambda s: s.update({"perceiver.latents": torch.zeros(3, 32)}), "features 32 wide, .* 64: give the CLIP"),
        (lambda s: s.update({"perceiver.latents": torch.zeros(0, 64)}), "latents is 0"),
        (lambda s: [s.pop(k) for k in [*s] if "gated" in k], "not an OpenFlamingo of the known layout"),
        (lambda s: s.pop(f"{GATE}attn.to_q.weight"), "over the language model in .* missing xattn.0.attention.query"),
        (lambda s: s.update({f"{GATE}attn_gate": torch.zeros(2)}), "xattn.0.attn_gate is .2,. instead of .1,."),
        (
            lambda s: s.update({f"{GATE.replace('1', '9' * 9)}ff.0.bias": torch.zeros(24)}),
            "unexpected xattn.2.ffw.0.bias",
        ),
        (
            lambda s: s.update({"perceiver.layers.99999999.1.0.bias": torch.zeros(64)}),
            "does not fit Flamingo: missing resampler.layers.2",
        ),
        (lambda s: s.pop("perceiver.layers.0.0.to_q.weight"), "not an OpenFlamingo of the known layout"),
        (
            lambda s: s.update({"lang_encoder.model.embed_tokens.weight": torch.zeros(258, 24)}),
            "258 word embeddings, too few .*: give the language model",
        ),
        (
            lambda s: s.update({"lang_encoder.model.embed_tokens.weight": torch.zeros(259, 20)}),
            "word embeddings 20 wide, .* 24: give the one .* --lm",
        ),
        (lambda s: s.update({"lang_encoder.lm_head.weight": torch.zeros(9, 24)}), "head.weight is .9, 24. instead of"),
        (lambda s: s.pop("vision_encoder.class_embedding"), "none of OpenAI's CLIP: give a directory"),
        (lambda s: s.update({"vision_encoder.class_embedding": torch.zeros(1280)}), "none of OpenAI's CLIP"),
        (lambda s: s.update({"vision_encoder.class_embedding": torch.zeros(())}), "not a CLIP of the known layout"),
        (lambda s: s.update({"vision_encoder.conv1.weight": torch.zeros(3)}), "not a CLIP of the known layout"),
        (lambda s: s.pop("vision_encoder.ln_pre.bias"), "does not fit ViT: missing norm_before.bias"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, llama: tuple[State, Path], edit: Edit, message: str
) -> None:
    state, lm = llama
    edit(state)
    with pytest.raises(InputError, match=message) as refusal:
        convert_checkpoint(saved(tmp_path / "checkpoint.pt", state), tmp_path / "ours", lm=lm)
    assert "\n" not in str(refusal.value) and not (tmp_path / "ours").exists()


def test_frozen_parts_that_are_missing_or_others_are_refused(tmp_path: Path, llama: tuple[State, Path]) -> None:
    state, lm = llama
    source, bare = (
        saved(tmp_path / "whole.pt", state),
        saved(tmp_path / "bare.pt", without(state, "vision_encoder.")),
    )
    siglip = clip_directory(tmp_path / "siglip", tower(), model_type="siglip")
    tanh = clip_directory(tmp_path / "tanh", tower(), model_type="clip_vision_model", hidden_act="tanh")
    shallow = transformers.LlamaConfig(**SMALL | {"num_hidden_layers": 2}, intermediate_size=30)
    other = lm_directory(tmp_path / "2", transformers.LlamaForCausalLM(shallow), byte_tokenizer().tokenizer)
    for arguments, message in (
        ((source, siglip, lm), "has its own image encoder: leave out --vision"),
        ((bare, None, lm), "leaves out its image encoder: give OpenAI's CLIP with --vision"),
        ((source, None, None), "leaves out its language model: .* --lm"),
        ((source, None, source), "leaves out its language model: .* --lm"),
        ((source, None, tmp_path), "cannot read .*config.json"),
        ((source, None, other), "over the language model in .* unexpected xattn.1"),
        ((bare, tmp_path / "none.pt", lm), "cannot read .*none.pt"),
        ((bare, bare, lm), "none of OpenAI's CLIP"),
        ((bare, siglip, lm), "holds a model of the type 'siglip': give a CLIP"),
        ((bare, tanh, lm), "a feed-forward with 'tanh' is not covered: only quick_gelu and gelu"),
    ):
        checkpoint, vision, language = arguments
        with pytest.raises(InputError, match=message) as refusal:
            convert_checkpoint(checkpoint, tmp_path / "ours", vision=vision, lm=language)
        assert "\n" not in str(refusal.value) and not (tmp_path / "ours").exists()


class Calls:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"perceiver.latents": Calls()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="which is refused"):
        convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "ours")
    assert not (tmp_path / "made").exists()


def test_the_command(
    tmp_path: Path, llama: tuple[State, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, lm = llama
    source = saved(tmp_path / "checkpoint.pt", state, nested=True)
    arguments = [source, tmp_path / "ours", "--lm", lm, "--int8", "--json"]
    monkeypatch.setattr(sys, "argv", ["triptych", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert len(json.loads(out)["mapped"]) == len(state) - 3
    assert load(tmp_path / "ours", device="cpu").info()["latents"] == 3


def test_photos_and_prompts_are_open_flamingo_s(tmp_path: Path, llama: tuple[State, Path]) -> None:
    """The middle of the photo; ``<image>Output:`` and ``<image>Question:... Short answer:``, examples without a space."""
    state, lm = llama
    convert_checkpoint(saved(tmp_path / "checkpoint.pt", state), tmp_path / "ours", lm=lm)
    ours = load(tmp_path / "ours", device="cpu")
    assert isinstance(ours, FlamingoTasks)
    photo = Image.new("RGB", (40, 12))
    photo.paste((200, 30, 90), (14, 0, 26, 12))  # all that is seen
    assert torch.equal(*map(torch.as_tensor, ours.prompts.encode([photo, photo.crop((14, 0, 26, 12))])))
    answer = ours.caption(photo, shots=[(photo, "a dog"), (None, "a cat")], explain=True, max_new_tokens=3)
    assert answer.recipe and answer.recipe.prompt == f"{IMAGE}Output:a dog{END}Output:a cat{END}{IMAGE}Output:"
    assert answer.recipe.pixels.shortest_side == answer.recipe.pixels.size == 12
    if answer.evidence is not None:
        assert answer.evidence.maps[..., 0].max() == answer.evidence.maps[..., 2].max() == 0  # cut off
    for asked, choices in (("what is it?", None), ("what is it?", ["a dog", "a cat"])):
        answer = ours.ask(photo, asked, choices, max_new_tokens=3)
        assert answer.recipe and answer.recipe.prompt == f"{IMAGE}Question:what is it? Short answer:"
        assert (answer.recipe.search is None) == (choices is not None)
    completed = ours.complete(photo, [(photo, "Output:a dog")], "Output:", max_new_tokens=2)
    assert completed.recipe and completed.recipe.prompt == f"{IMAGE}Output:a dog{END}{IMAGE}Output:"
    chat = ours.chat()
    chat.add(photo)
    chat.ask("what is it?", max_new_tokens=2)
    assert chat.turns[0].prompt(ours.spec.prompts) == f"{IMAGE}Question:what is it? Short answer:"
