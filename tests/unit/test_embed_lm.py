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

from triptych.checkpoints import hub
from triptych.checkpoints.config import Card
from triptych.checkpoints.locate import load_config
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.embed import tokenizer_files
from triptych.errors import InputError
from triptych.models import save_blip2
from triptych.models.frozen import find_language_model, language_model_spec
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
    config = msgspec.structs.replace(tiny.config, lm=language_model_spec(str(folder), lm))
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


def test_a_language_model_that_was_moved(bridge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used beside the checkpoint, in it, and from the hub's cache; its content must be the same."""
    photo, settings = Image.new("RGB", (20, 30), (200, 30, 90)), {"max_new_tokens": 6, "beams": 1}
    before = load(bridge, device="cpu").caption(photo, **settings).text
    for place in (tmp_path / "moved", tmp_path / "moved" / "bridge"):
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
        moved = Path(shutil.copytree(bridge, tmp_path / "moved" / "bridge"))
        shutil.copytree(tmp_path / "opt", place / "opt")
        (tmp_path / "opt").rename(tmp_path / "elsewhere")
        assert load(moved, device="cpu").caption(photo, **settings).text == before
        convert_checkpoint(moved, tmp_path / f"whole-{place.name}", embed_lm=True)
        (tmp_path / "elsewhere").rename(tmp_path / "opt")
    config = json.loads((bridge / "config.json").read_text())
    fetched: list[str] = []
    monkeypatch.setattr(hub, "fetch_model", lambda name: fetched.append(name) or tmp_path / "opt")
    for name, models in (
        ("lms/opt", []),  # of another folder, which a model on the hub might be called
        ("/gone/hub/models--facebook--opt/snapshots/abc", ["facebook/opt"]),
        ("facebook/opt-tiny", ["facebook/opt-tiny"]),
    ):
        fetched.clear()
        config["lm"]["name"] = name
        (bridge / "config.json").write_text(json.dumps(config))
        assert load(bridge, device="cpu").caption(photo, **settings).text == before
        assert [*dict.fromkeys(fetched)] == models
    config["lm"]["name"] = "/gone/opt"
    (bridge / "config.json").write_text(json.dumps(config))
    (tmp_path / "opt").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="the language model /gone/opt, which is not there: put opt beside bridge"):
        load(bridge, device="cpu")


def test_what_is_kept_of_its_name(bridge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path, whatever folder the training ran in; of a model on the hub its name there."""
    monkeypatch.chdir(tmp_path)
    lm = find_language_model("opt")
    spec = language_model_spec("opt", lm)
    assert spec.name == str(tmp_path / "opt") and spec.sha256 == load_config(bridge).lm.sha256  # type: ignore[union-attr]
    monkeypatch.setattr(hub, "fetch_model", lambda name: tmp_path / "opt")
    spec = language_model_spec("facebook/opt", find_language_model("facebook/opt"))
    assert spec.name == "facebook/opt" and spec.sha256 == load_config(bridge).lm.sha256  # type: ignore[union-attr]


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
