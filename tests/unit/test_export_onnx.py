"""Graphs for plain ONNX Runtime: the program of docs/checkpoints.md writes what the engine writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip2 import byte_tokenizer, tiny_blip2
from tiny_onnx import randomise, tiny_decoder

from triptych.checkpoints.config import Card, CheckpointConfig, EncoderSpec, LanguageModelSpec
from triptych.checkpoints.locate import BUNDLED
from triptych.engines.onnx.export import export_onnx
from triptych.errors import InputError
from triptych.models.blip2 import Blip2Model, blip2_search, save_blip2
from triptych.nn.cnn import EfficientNetLite
from triptych.nn.configs import QFormerConfig
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.tasks import load
from triptych.tasks.words import sentence

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 of random weights over EfficientNet-Lite, that holds its language model."""
    torch.manual_seed(0)
    words, tokenizer = tiny_blip2().words, byte_tokenizer()
    encoder, lm = EfficientNetLite(image_size=64), tiny_decoder(vocab_size=len(tokenizer))
    qformer = QFormerConfig(1280, dim=32, layers=2, heads=4, mlp_dim=48, queries=3, vocab_size=len(words))
    model = Blip2(Blip2Config(qformer, feature_dim=16), encoder, lm)
    for part in (model.qformer, model.projection, lm):
        randomise(part, 0.25)
    ends = tuple(sorted(tokenizer.eos_ids))
    config = CheckpointConfig(
        system="blip2",
        model=model.config,
        encoder=EncoderSpec(encoder.name, stored=True, image_size=64),
        lm=LanguageModelSpec("tiny", stored=True, decoder=lm.config, eos=ends),
    )
    names = {i: text for text, i in tokenizer.specials.items()}
    files = {
        "tokenizer.json": tokenizer.tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"eos_token": names[ends[0]]}).encode(),
    }
    directory = tmp_path_factory.mktemp("saved") / "blip2"
    search = blip2_search(tokenizer, max_new_tokens=8)
    save_blip2(directory, Blip2Model(model.eval(), words, tokenizer, search, config, files), Card())
    return directory


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_program_of_the_docs(saved: Path, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert export_onnx(saved, tmp_path / "graphs", precision) >= 4  # type: ignore[arg-type]
    (program,) = re.findall(r"<!-- a test runs this -->\n```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(program.splitlines()) <= 52 and "triptych" not in re.sub(r'""".*?"""', "", program)
    (tmp_path / "caption.py").write_text(program)
    command = [sys.executable, str(tmp_path / "caption.py"), str(tmp_path / "graphs"), str(tmp_path / "photo.png")]
    written = subprocess.run(command, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr
    ours = load(saved, precision=precision)
    answer = ours.caption(tmp_path / "photo.png", beams=1, once=None, writer="lm")
    assert type(ours.engine).__name__ == "OnnxBlip2" and len(answer.tokens) > 0
    assert sentence(written.stdout.removesuffix("\n").strip()) == answer.text


def test_what_has_no_graphs(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a sat model: graphs can be exported of blip2 only"):
        export_onnx(BUNDLED / "sat", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(InputError, match="is not an empty folder"):
        export_onnx(saved, tmp_path / "mine")
