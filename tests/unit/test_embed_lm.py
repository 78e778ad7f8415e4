"""A checkpoint that names its language model, moved with the language model inside."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from test_convert_lavis import save_opt, stage2
from tiny_blip2 import TinyNet, byte_tokenizer, tiny_blip2

from triptych.checkpoints.config import Card, LanguageModelSpec
from triptych.checkpoints.locate import load_config
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.embed import tokenizer_files
from triptych.errors import InputError
from triptych.models import save_blip2
from triptych.models.frozen import find_language_model, language_model_fingerprint
from triptych.nn.cnn import ENCODERS
from triptych.systems.blip2 import Blip2
from triptych.tasks import load
from triptych.text.tokenizer import TextTokenizer


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BLIP-2 over an OPT in a folder beside it, of which it says where it lies."""
    monkeypatch.setitem(ENCODERS, "tiny", lambda cut, image_size: TinyNet())
    model, tokenizer = stage2()
    folder = save_opt(tmp_path / "opt", model.lm, tokenizer)  # type: ignore[arg-type]
    lm = find_language_model(str(folder))
    tiny = tiny_blip2()
    both = Blip2(tiny.model.config, TinyNet(), lm.model)
    spec = LanguageModelSpec(str(folder), stored=False, sha256=language_model_fingerprint(str(folder), lm))
    config = msgspec.structs.replace(tiny.config, lm=spec)
    named = replace(tiny, model=both.eval(), tokenizer=lm.tokenizer, config=config)
    save_blip2(tmp_path / "bridge", named, Card(licence="none"))
    return tmp_path / "bridge"


def test_it_is_moved_and_writes_the_same(bridge: Path, tmp_path: Path) -> None:
    photo = Image.new("RGB", (20, 30), (200, 30, 90))
    settings = {"max_new_tokens": 6, "beams": 1}
    before = load(bridge, device="cpu").caption(photo, **settings)
    convert_checkpoint(bridge, tmp_path / "whole", embed_lm=True)
    shutil.rmtree(tmp_path / "opt")
    with pytest.raises(InputError):
        load(bridge, device="cpu")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "whole").rename(tmp_path / "elsewhere" / "whole")
    after = load(moved, device="cpu").caption(photo, **settings)
    assert (after.text, after.logprobs) == (before.text, before.logprobs) and after.text
    config = load_config(moved)
    assert config.lm and config.lm.stored and config.lm.name == "opt" and config.card.licence == "none"
    assert str(tmp_path) not in (moved / "config.json").read_text()
    with pytest.raises(InputError, match="holds its language model already: leave out --embed-lm"):
        convert_checkpoint(moved, tmp_path / "again", embed_lm=True)


def test_another_language_model_is_refused(bridge: Path, tmp_path: Path) -> None:
    config = json.loads((bridge / "config.json").read_text())
    config["lm"]["sha256"] = "0" * 64
    (bridge / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="was trained with another"):
        convert_checkpoint(bridge, tmp_path / "whole", embed_lm=True)


def test_a_tokenizer_without_files(tmp_path: Path) -> None:
    """Of a GGUF file: what is written reads the same texts."""
    own = replace(byte_tokenizer(), bos_id=256, add_bos=True, template="{{ messages }}")
    for name, content in tokenizer_files(tmp_path / "model.gguf", own).items():
        (tmp_path / name).write_bytes(content)
    again = TextTokenizer.from_directory(tmp_path)
    assert again.encode("a dog <end>", begin=True) == own.encode("a dog <end>", begin=True)
    assert (again.eos_ids, again.bos_id, again.add_bos, again.template) == (own.eos_ids, 256, True, own.template)
