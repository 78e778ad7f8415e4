"""A BLIP-2 trained over a GGUF file of one's own, on ONNX Runtime: the file is found, checked, and its blocks are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_blip2 import WORDS as PIECES
from tiny_decoder import random_decoder
from tiny_gguf import GGUF_CONFIG, write_gguf
from tiny_onnx import randomise

from triptych.checkpoints.config import Card, CheckpointConfig, EncoderSpec
from triptych.checkpoints.language_models import load_language_model
from triptych.checkpoints.locate import load_config
from triptych.engines.choice import open_onnx
from triptych.engines.onnx.matrix import Blocks
from triptych.engines.onnx.opening import default_precision, open_engine
from triptych.engines.onnx.sources import Source
from triptych.errors import InputError
from triptych.models import Blip2Model, language_model_spec, load_blip2, save_blip2
from triptych.models.blip2 import blip2_search
from triptych.nn.cnn import EfficientNetLite
from triptych.nn.configs import QFormerConfig
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.tasks import load
from triptych.text.wordpiece import WordPieces


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It names the file by its whole path."""
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    path = tmp_path / "models" / "own.gguf"
    path.parent.mkdir()
    write_gguf(path, random_decoder(GGUF_CONFIG), quantised=True)
    lm = load_language_model(path)
    encoder, words = EfficientNetLite(cut=22, image_size=64), WordPieces(PIECES)
    qformer = QFormerConfig(1280, 64, 2, 2, 96, queries=4, vocab_size=len(words), max_positions=64)
    model = Blip2(Blip2Config(qformer, feature_dim=32), encoder, lm.model)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("lm.")}
    randomise(model, 0.1)
    model.load_state_dict(frozen, strict=False)
    config = CheckpointConfig(
        system="blip2",
        model=model.config,
        encoder=EncoderSpec(encoder.name, stored=True, image_size=64, cut=22),
        lm=language_model_spec(str(path), lm),
    )
    search = blip2_search(lm.tokenizer, max_new_tokens=5)
    save_blip2(tmp_path / "ours", Blip2Model(model, words, lm.tokenizer, search, config), Card())
    return tmp_path / "ours"


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_both_engines_write_the_same(saved: Path) -> None:
    ours, theirs = load(saved, precision="fp32"), load(saved, device="cpu")
    assert type(ours.engine).__name__ == "OnnxBlip2" and type(theirs.engine).__name__ == "TorchBlip2"
    for settings in ({}, {"beams": 3}):
        a, b = ours.caption(photo(), **settings), theirs.caption(photo(), **settings)
        assert a.text == b.text and a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def test_its_blocks_are_kept(saved: Path) -> None:
    config = load_config(saved)
    weights = Source(saved, config).language_model.weights
    lm = load_blip2(saved).model.lm
    assert lm is not None and default_precision(config) == "int8"
    for name in ("blocks.1.attention.qkv.weight", "blocks.0.ffn.down.weight"):
        matrix = weights.matrix(name)
        assert isinstance(matrix, Blocks) and matrix.bits == 4
        torch.testing.assert_close(torch.from_numpy(matrix.dense()), lm.state_dict()[name])


def test_the_file_is_found_and_checked(saved: Path, tmp_path: Path) -> None:
    """Beside the checkpoint after a move; another file of this name is refused; with the graphs there it is not read."""
    file = tmp_path / "models" / "own.gguf"
    moved = file.rename(tmp_path / "own.gguf")
    open_engine(saved, "fp32")
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    open_engine(saved, "fp32")
    with pytest.raises(InputError, match=r"was trained with another .*own\.gguf than is there now"):
        open_engine(saved, "int8")


def test_checkpoints_without_the_hash_of_the_file_run_on_torch(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (saved / "config.json").read_text()
    lm = load_config(saved).lm
    assert lm is not None and lm.file_sha256
    (saved / "config.json").write_text(text.replace(f'"{lm.file_sha256}"', "null"))
    assert open_onnx(saved, None) is None
    assert "does not cover the language model" in capsys.readouterr().err
