"""The published models in their real sizes, without memory: every key fits, and the predictions of docs/checkpoints.md are those made."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_blip2_t5_transformers import t5_tokenizer
from test_blip2_transformers import byte_tokenizer, llama_tokenizer
from torch import Tensor

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.store import TensorStore
from triptych.convert import blip2 as convert_blip2
from triptych.convert import idefics as convert_idefics
from triptych.convert.checkpoint import convert_checkpoint
from triptych.models.memory import WIDTHS, bytes_needed, count_weights
from triptych.text.wordpiece import SPECIAL_PIECES

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
OPT = {"activation_function": "relu", "max_position_embeddings": 2048, "eos_token_id": 50118, "vocab_size": 50304}
T5 = {
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "d_kv": 64,
    "num_layers": 24,
}
LLAMA = {"vocab_size": 32001, "eos_token_id": 2, "max_position_embeddings": 2048}
TEXT: dict[str, Any] = {
    "blip2-opt-2.7b": transformers.OPTConfig(
        **OPT, hidden_size=2560, ffn_dim=10240, word_embed_proj_dim=2560, num_hidden_layers=32, num_attention_heads=32
    ),
    "blip2-opt-6.7b": transformers.OPTConfig(
        **OPT, hidden_size=4096, ffn_dim=16384, word_embed_proj_dim=4096, num_hidden_layers=32, num_attention_heads=32
    ),
    "blip2-flan-t5-xl": transformers.T5Config(**T5, d_model=2048, d_ff=5120, num_heads=32),
    "blip2-flan-t5-xxl": transformers.T5Config(**T5, d_model=4096, d_ff=10240, num_heads=64),
    "instructblip-flan-t5-xl": transformers.T5Config(**T5, d_model=2048, d_ff=5120, num_heads=32),
    "instructblip-vicuna-7b": transformers.LlamaConfig(**LLAMA),
    "instructblip-vicuna-13b": transformers.LlamaConfig(
        **LLAMA, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
}
PREDICTED = ("blip2-opt-2.7b", "blip2-opt-6.7b", "blip2-flan-t5-xl", "instructblip-vicuna-7b")  # in the documentation
PARAMETERS = {  # in billions, as their cards say
    "blip2-opt-2.7b": 3.7,
    "blip2-opt-6.7b": 7.8,
    "blip2-flan-t5-xl": 3.9,
    "blip2-flan-t5-xxl": 12.2,
    "instructblip-flan-t5-xl": 4.0,
    "instructblip-vicuna-7b": 7.9,
    "instructblip-vicuna-13b": 14.2,
}


class Layouts(TensorStore):
    """Shapes alone; no tensor may be read but those by which a T5 shows whether its output layer is tied."""

    def __init__(self, layouts: Mapping[str, Tensor]) -> None:
        self.layouts_ = layouts

    @property
    def names(self) -> Collection[str]:
        return self.layouts_

    def layout(self, name: str) -> Tensor:
        return self.layouts_[name]

    def __getitem__(self, name: str) -> Tensor:
        assert name in ("language_model.lm_head.weight", "language_model.shared.weight"), f"{name} was read"
        return torch.full((1,), len(name))


def published(name: str, folder: Path) -> TensorStore:
    """The folder of a model without its weights, and their layouts."""
    text = TEXT[name]
    tokenizers = {"opt": byte_tokenizer, "t5": t5_tokenizer, "llama": llama_tokenizer}
    tokenizers[text.model_type]().save_pretrained(folder)
    instructed = name.startswith("instruct")
    kind = "InstructBlip" if instructed else "Blip2"
    config = getattr(transformers, f"{kind}Config")(text_config=text, num_query_tokens=32, image_token_index=5)
    config.qformer_config.vocab_size = 30523 if instructed else 30522
    config.architectures = [f"{kind}ForConditionalGeneration"]
    config.save_pretrained(folder)
    if instructed:
        words = [*SPECIAL_PIECES, *map(str, range(30523 - len(SPECIAL_PIECES)))]
        (folder / "qformer_tokenizer").mkdir()
        (folder / "qformer_tokenizer" / "vocab.txt").write_text("\n".join(words))
    with torch.device("meta"):
        return Layouts(getattr(transformers, f"{kind}ForConditionalGeneration")(config).state_dict())


@pytest.mark.parametrize("name", TEXT)
def test_every_key_fits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, made = published(name, tmp_path), list[tuple[CheckpointConfig[Any], TensorStore]]()
    monkeypatch.setattr(convert_blip2, "open_folder", lambda source: theirs)
    monkeypatch.setattr(
        convert_blip2, "write_blip2", lambda target, config, tensors, *_, **__: made.append((config, tensors))
    )
    report = convert_checkpoint(tmp_path, tmp_path / "ours")
    tied = {
        key for key in theirs if re.fullmatch(r"language_model\.(lm_head|(encoder|decoder)\.embed_tokens)\.weight", key)
    }
    assert report.missing == () and set(report.ignored) <= tied
    assert {*report.mapped, *report.ignored} == set(theirs)
    ((config, tensors),) = made
    weights = count_weights(tensors)
    assert weights.parameters / 1e9 == pytest.approx(PARAMETERS[name], abs=0.06)
    assert config.encoder.vit is not None and config.encoder.vit.heads == 16 and config.encoder.vit.dim == 1408
    needed = {width: bytes_needed(weights, WIDTHS[width]) / 1e9 for width in ("fp32", "bf16", "int8")}
    row = re.search(
        rf"^\| {re.escape(name)} \| [^|]+\| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", DOCS.read_text(), re.M
    )
    assert (row is None) == (name not in PREDICTED)
    if row is not None:
        assert [f"{gigabytes:.1f}" for gigabytes in needed.values()] == [*row.groups()]


def test_every_key_of_idefics_9b_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fake_token_around_image>", "<image>"]})
    tokenizer.save_pretrained(tmp_path)
    vision = {
        "embed_dim": 1280,
        "image_size": 224,
        "intermediate_size": 5120,
        "patch_size": 14,
        "num_hidden_layers": 32,
    }
    resampler = {"resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96, "resampler_n_latents": 64}
    config = transformers.IdeficsConfig(
        vocab_size=32000,
        additional_vocab_size=2,
        cross_layer_interval=4,
        qk_layer_norms=True,
        use_resampler=True,
        vision_config=vision | {"num_attention_heads": 16},
        perceiver_config=resampler | {"use_resampler": True, "qk_layer_norms_perceiver": True},
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = Layouts(transformers.IdeficsForVisionText2Text(config).state_dict())
    made: list[TensorStore] = []
    monkeypatch.setattr(convert_idefics, "open_folder", lambda source: theirs)
    monkeypatch.setattr(convert_idefics, "save_checkpoint", lambda target, *, tensors, **_: made.append(tensors))
    report = convert_checkpoint(tmp_path, tmp_path / "ours")
    assert {key.rpartition(".")[0] for key in report.ignored} == {"model.vision_model.post_layernorm"}
    assert {*report.mapped, *report.ignored} == set(theirs)
    assert count_weights(made[0]).parameters / 1e9 == pytest.approx(8.9, abs=0.1)
