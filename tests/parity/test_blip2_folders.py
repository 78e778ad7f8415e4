"""Configs and files of BLIP-2 folders of transformers: what they leave out, and those that do not fit together, which are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_blip2_transformers import WORDS, Pair, generation, instruct  # noqa: F401

from triptych.convert.blip2 import LANGUAGE, QFORMER, VISION
from triptych.convert.checkpoint import convert_checkpoint
from triptych.errors import InputError


def test_what_configs_leave_out() -> None:
    """Published configs hold what differs from transformers' defaults."""
    for ours, theirs in (
        (VISION, transformers.Blip2VisionConfig()),
        (QFORMER, transformers.Blip2QFormerConfig()),
        (VISION, transformers.InstructBlipVisionConfig()),
        (QFORMER, transformers.InstructBlipQFormerConfig()),
        (LANGUAGE["opt"], transformers.OPTConfig()),
        (LANGUAGE["llama"], transformers.LlamaConfig()),
        (LANGUAGE["t5"], transformers.T5Config()),
    ):
        assert {name: getattr(theirs, name) for name in ours} == ours


Edit = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["text_config"].update(model_type="bloom"), "type 'bloom' are not covered"),
        (lambda c: c.update(architectures=None, model_type="blip"), "holds blip:"),
        (lambda c: c.update(vision_config=[1]), "vision_config of config.json is not a JSON object"),
        (lambda c: c["vision_config"].update(hidden_act="quick_gelu"), "'quick_gelu' is not covered"),
        (lambda c: c["vision_config"].update(num_attention_heads=5), "does not fit Blip2: .* instead of"),
        (lambda c: c["qformer_config"].update(num_attention_heads=-4), "-4 heads and an epsilon"),
        (lambda c: c["qformer_config"].update(num_attention_heads=1 << 40), "does not fit Blip2"),
        (lambda c: c["text_config"].update(num_hidden_layers=3), "does not fit Decoder: missing"),
        (lambda c: c["text_config"].update(vocab_size=20), "no ids of its vocabulary"),
        (lambda c: c["text_config"].update(eos_token_id=[4, 9999]), "no ids of its vocabulary"),
    ],
)
def test_configs_that_do_not_fit_are_refused(generation: Pair, tmp_path: Path, edit: Edit, message: str) -> None:  # noqa: F811
    folder = shutil.copytree(generation.folder, tmp_path / "peer")
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as refusal:
        convert_checkpoint(folder, tmp_path / "ours")
    assert "\n" not in str(refusal.value) and not (tmp_path / "ours").exists()


def test_files_that_do_not_fit_are_refused(instruct: Pair, tmp_path: Path) -> None:  # noqa: F811
    folder = shutil.copytree(instruct.folder, tmp_path / "peer")

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            convert_checkpoint(folder, tmp_path / "ours")

    for option in ({"word_map": folder}, {"vision": folder}, {"lm": folder}):
        with pytest.raises(InputError, match="has its own"):
            convert_checkpoint(folder, tmp_path / "ours", **option)
    (folder / "processor_config.json").write_text(
        '{"image_processor": {"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}}'
    )
    refused("expected numbers, the second above 0")
    (folder / "processor_config.json").unlink()
    words = folder / "qformer_tokenizer" / "tokenizer.json"
    words.write_text('{"model": {"vocab": {"a": 1}}}')
    refused("no vocabulary of word pieces")
    words.with_name("vocab.txt").write_text("\n".join([*WORDS, "more", "and more"]))
    refused(f"{len(WORDS) + 3} word pieces, but its Q-Former knows {len(WORDS) + 1}")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": places["weight_map"] | {"one.more": "model-00001-of-00001.safetensors"}})
    )
    refused("download the missing shards")
    index.write_text(
        json.dumps({"weight_map": places["weight_map"] | {"one.more": min(places["weight_map"].values())}})
    )
    refused("names one.more, which is in none of its files")
    index.write_text(json.dumps({"weight_map": places["weight_map"] | {"one.more": "../peer/x"}}))
    refused("which is no file beside it")
    index.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused("pytorch_model.bin is empty: download it again")
    assert not (tmp_path / "ours").exists()
