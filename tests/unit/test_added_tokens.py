"""Tokens that are added to a frozen language model: only their rows are trained, and they go where the model goes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_convert_lavis import save_opt, stage2
from test_train_flamingo import Cells, rows_of
from tiny_blip2 import TinyNet

from triptych.checkpoints.config import Card, EncoderSpec
from triptych.checkpoints.language_models import build
from triptych.checkpoints.locate import load_config
from triptych.convert.checkpoint import convert_checkpoint
from triptych.engines.onnx import opening
from triptych.engines.onnx.coverage import NotCoveredError
from triptych.errors import InputError
from triptych.models import FlamingoModel, load_flamingo, save_flamingo
from triptych.nn.cnn import ENCODERS
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.tasks import load
from triptych.train.crops import all_cells
from triptych.train.flamingo import start
from triptych.train.flamingo.batches import padded
from triptych.train.flamingo.objective import FlamingoObjective
from triptych.train.flamingo.recipe import FlamingoNetwork, FlamingoRecipe, FlamingoStart
from triptych.train.flamingo.trainer import flamingo_parameter_groups
from triptych.train.trainer import train_bridges

SIZES = FlamingoNetwork(dim=8, latents=3, resampler_layers=1, every=1)


@pytest.mark.parametrize("tied", [True, False])
def test_they_are_rows_behind_the_models_own(tied: bool) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(11, dim=16, layers=1, heads=2, ffn_dim=24, tied=tied, max_positions=32)
    lm = build(config, Decoder(config).state_dict(), "test")
    assert isinstance(lm, Decoder)
    text = torch.tensor([[3, 10, 0, 7]])
    before = lm.logits(lm(text))
    lm.add_tokens([3, None])
    assert lm.vocab_size == 13 and lm.added is not None
    after = lm.logits(lm(text))
    assert torch.equal(after[..., :11], before) and after.shape[-1] == 13
    torch.testing.assert_close(after[..., 11], before[..., 3])
    torch.testing.assert_close(after[..., 12], before.mean(-1))
    rows = lm.state_dict()
    whole = {name: rows[name] for name in rows if not name.startswith("added.")}
    for name in ("embedding", *([] if tied else ["head"])):
        whole[f"{name}.weight"] = torch.cat([whole[f"{name}.weight"], rows[f"added.{name}"]])
    same = build(replace(config, vocab_size=13), whole, "test")
    text = torch.tensor([[11, 2, 12, 10]])
    torch.testing.assert_close(lm.logits(lm(text)), same.logits(same(text)))  # type: ignore[operator]


@pytest.fixture
def opt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A language model without a spare token, in a folder of transformers'; and a tiny image encoder."""
    monkeypatch.setitem(ENCODERS, "tiny", lambda cut, image_size: TinyNet())
    monkeypatch.setattr(start, "vision_encoder", lambda *given, **more: TinyNet())
    monkeypatch.setattr(start, "encoder_spec", lambda vision: EncoderSpec("tiny", stored=True, image_size=12))
    model, tokenizer = stage2()
    return save_opt(tmp_path / "opt", model.lm, tokenizer)  # type: ignore[arg-type]


def new(folder: Path, **settings: Any) -> FlamingoModel:
    return start.new_flamingo(FlamingoStart(lm=str(folder), network=SIZES, **settings))


def trained(flamingo: FlamingoModel) -> None:
    """Two steps of training, with examples that end and pictures before them."""
    model, pictures = flamingo.model, Cells(3)
    with torch.no_grad():
        for name, gate in model.named_parameters():
            gate.fill_(0.5) if name.endswith("_gate") else None
    train_bridges(model)
    objective = FlamingoObjective(model, ["caption"], FlamingoRecipe())
    groups = flamingo_parameter_groups(model, FlamingoRecipe())
    optimizer = torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=0.05, weight_decay=0.0)
    ids, labels, counts = padded(rows_of(flamingo), 0)
    for _ in range(2):
        optimizer.zero_grad()
        objective(
            all_cells(pictures, [0, 1, 2]), counts, ids, labels, torch.tensor([0, 0, 0]), torch.arange(3), 0
        ).backward()
        optimizer.step()
    model.eval().requires_grad_(False)


def test_they_alone_are_trained_of_the_language_model(opt: Path) -> None:
    flamingo = new(opt, add_tokens=True)
    lm, words = flamingo.model.lm, flamingo.model.lm.config.vocab_size
    assert (flamingo.end_id, flamingo.model.config.image_id) == (words, words + 1)
    assert flamingo.tokenizer.eos_ids == {words} and flamingo.search.eos == {words}
    before = {name: x.clone() for name, x in lm.state_dict().items()}
    trained(flamingo)
    changed = {name for name, x in lm.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"added.embedding"}
    assert all((lm.state_dict()["added.embedding"] != before["added.embedding"]).any(1))  # both rows


def test_they_are_saved_and_embedded(opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds their rows and no others of the language model; with ``--embed-lm`` they are its own."""
    flamingo = new(opt, add_tokens=True)
    trained(flamingo)
    save_flamingo(tmp_path / "ours", flamingo, Card())
    stored = load_file(tmp_path / "ours" / load_config(tmp_path / "ours").weights)
    assert [name for name in stored if name.startswith("lm.")] == ["lm.added.embedding"]
    again = load_flamingo(tmp_path / "ours")
    assert again.tokenizer.eos_ids == flamingo.tokenizer.eos_ids
    convert_checkpoint(tmp_path / "ours", tmp_path / "whole", embed_lm=True)
    spec = load_config(tmp_path / "whole").lm
    assert spec and spec.stored and spec.decoder and not spec.added_tokens
    assert spec.decoder.vocab_size == again.model.lm.vocab_size and spec.eos == (flamingo.end_id,)
    photo, settings = Image.new("RGB", (20, 30), (200, 30, 90)), {"max_new_tokens": 6, "beams": 2}
    one, other = (load(tmp_path / name, device="cpu").caption(photo, **settings) for name in ("ours", "whole"))
    assert (one.text, one.logprob) == (other.text, pytest.approx(other.logprob, rel=1e-5)) and one.text
    monkeypatch.setattr(opening, "check_encoder", lambda spec: None)
    with pytest.raises(NotCoveredError, match=r"added tokens .*--embed-lm"):  # ONNX Runtime runs the embedded one
        opening.open_flamingo(tmp_path / "ours", "fp32")


def test_a_checkpoint_without_their_rows_is_refused(opt: Path, tmp_path: Path) -> None:
    flamingo = new(opt, add_tokens=True)
    flamingo.model.lm.added = None
    save_flamingo(tmp_path / "ours", flamingo, Card())
    with pytest.raises(InputError, match="lacks the rows of the tokens that were added"):
        load_flamingo(tmp_path / "ours")


def test_when_they_are_needed(opt: Path) -> None:
    with pytest.raises(
        InputError, match=r"no spare token for a picture: add one with --add-tokens, or name one of <end>"
    ):
        new(opt)
    with pytest.raises(InputError, match="<end> ends a text: choose another --image-token, or --add-tokens"):
        new(opt, image_token="<end>")
    with pytest.raises(InputError, match="leave out --image-token"):
        new(opt, image_token="<end>", add_tokens=True)
