"""config.json: typed, upgraded from format 1, and refused by the field's name, its value and what is expected."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from triptych.checkpoints import config as config_module
from triptych.checkpoints.config import (
    Card,
    CheckpointConfig,
    EncoderSpec,
    LanguageModelSpec,
    SearchSpec,
    read_config,
)
from triptych.checkpoints.locate import load_config
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig, QFormerConfig, ViTConfig
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import DEFAULT_PROMPTS, INSTRUCT_BLIP

VIT = ViTConfig(24, 2, 2, 30, 4, 12)
DECODER = DecoderConfig(100, 16, 2, 2, 24, rope_factors=(1.0, 2.0, 3.0, 4.0))
WHOLE = CheckpointConfig(
    system="blip2",
    model=Blip2Config(QFormerConfig(24, queries=3), contrast_weight=15.0),
    encoder=EncoderSpec("vit", stored=True, image_size=12, vit=VIT, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    lm=LanguageModelSpec("tiny", stored=True, sha256="ab", decoder=DECODER, eos=(7, 8), end_id=8),
    search=SearchSpec(beams=4, length_penalty=0.5, max_new_tokens=12),
    prompts=INSTRUCT_BLIP,
    card=Card(recipe=["one", "two"], validation={"CIDEr-D": 0.5}, notes={"weather": "fine"}),
)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_config_comes_back_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE.to_json())
    assert read_config(path).typed(Blip2Config, path) == WHOLE
    assert json.loads(path.read_text())["model_type"] == "triptych_blip2"
    assert load_config(tmp_path) == load_config(path) == read_config(path)


def test_format_1_is_upgraded(tmp_path: Path) -> None:
    """It said where a frozen part is by ``part: null`` and ``config``, and ``end_id`` stood beside the language model."""
    old: dict[str, Any] = {
        "format": 1,
        "system": "flamingo",
        "model": {"image_dim": 5},
        "encoder": {"name": "efficientnet-lite2", "image_size": 320, "part": "ab"},
        "lm": {"name": "smollm2-135m", "sha256": "cd"},
        "search": {"beams": 3, "length_penalty": 0.7, "max_new_tokens": 25},
        "end_id": 2,
        "card": {"recipe": ["words first"], "test": {"questions": 51.0}, "weather": "fine"},
        "triptych": "0.1.0",
        "files": {"model.safetensors": "ef"},
    }
    config = read_config(written(tmp_path, json.dumps(old)))
    assert config.encoder == EncoderSpec("efficientnet-lite2", stored=False, sha256="ab", image_size=320)
    assert config.lm == LanguageModelSpec("smollm2-135m", stored=False, sha256="cd", end_id=2)
    assert (config.search, config.prompts) == (SearchSpec(3, 0.7, 25), DEFAULT_PROMPTS)
    assert config.card.to_dict() == old["card"] and config.card.notes == {"weather": "fine"}
    old["encoder"] = {"name": "vit", "config": asdict(VIT), "image_size": 12, "mean": [0.5] * 3, "std": [1] * 3}
    old["encoder"]["part"] = None
    old["lm"] = {"name": "opt", "config": asdict(DECODER), "eos": [3, 4], "sha256": "cd"}
    config = read_config(written(tmp_path, json.dumps(old)))
    assert (config.encoder.stored, config.encoder.vit, config.encoder.std) == (True, VIT, (1.0, 1.0, 1.0))
    assert config.lm == LanguageModelSpec("opt", True, "cd", DECODER, (3, 4), 2)
    del old["encoder"]["part"]
    with pytest.raises(InputError, match="'part' is missing"):
        read_config(written(tmp_path, json.dumps(old)))
    with pytest.raises(InputError, match="must be JSON objects"):
        read_config(written(tmp_path, json.dumps(old | {"encoder": "vit"})))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "is not JSON"),
        (b'{"format": 1', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"architectures": ["Blip2"]}', 'no "format"'),
        (b'{"format": 7, "triptych": "4.5"}', "format 7, written by triptych 4.5; this version reads formats 1 and 2"),
        (b'{"format": 2, "system": ["sat"]}', r'system is \["sat"\], expected str'),
    ],
)
def test_a_config_that_is_not_ours_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=words) as caught:
        load_config(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("encoder.image_size", "big", r'encoder.image_size is "big", expected int'),
        ("encoder.colour", 3, "encoder.colour is not a field that this version knows"),
        ("encoder.stored", None, "encoder.stored is null, expected bool"),
        ("encoder.vit.dim", [24], r"encoder.vit.dim is \[24\], expected int"),
        ("encoder.vit.width", 24, "encoder.vit.width is not a field that this version knows"),
        ("lm.decoder.heads", 0, "lm.decoder: invalid language model config: heads is 0, expected 1 to 1024"),
        ("lm.eos", [], "lm: a language model that is stored needs .* its eos"),
        ("lm.eos", [1, "a"], r'lm.eos.1 is "a", expected int'),
        ("search.beams", 1.5, "search.beams is 1.5, expected int"),
        ("prompts.caption", 7, "prompts.caption is 7, expected str"),
        ("model.writer", "me", r"""model.writer is "me", expected 'lm' or 'qformer'"""),
        ("model.qformer.dim", "x", r'model.qformer.dim is "x", expected int'),
        ("model.qformer.dims", 1, "model.qformer.dims is not a field that this version knows"),
        ("model.feature_dims", 1, "model.feature_dims is not a field that this version knows"),
        ("model", 3, "model is 3, expected object"),
        ("files", {"../x": "0"}, r"files names '../x', expected names of files beside"),
        ("files", 3, "files is 3, expected object"),
        ("colour", 3, "colour is not a field that this version knows"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, place: str, value: Any, words: str) -> None:
    content = json.loads(WHOLE.to_json())
    *parents, last = place.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    inner[last] = value
    path = written(tmp_path, json.dumps(content))
    with pytest.raises(InputError, match=words) as caught:
        read_config(path).typed(Blip2Config, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["system", "encoder.name", "lm.stored", "model.qformer", "model.qformer.image_dim"])
def test_a_missing_field_is_named(tmp_path: Path, place: str) -> None:
    content = json.loads(WHOLE.to_json())
    *parents, last = place.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    del inner[last]
    path = written(tmp_path, json.dumps(content))
    with pytest.raises(InputError, match=f"{place} is missing"):
        read_config(path).typed(Blip2Config, path)


def test_an_encoder_that_is_nowhere_is_refused() -> None:
    with pytest.raises(InputError, match="identified by its sha256"):
        EncoderSpec("efficientnet-lite2", stored=False)


def test_a_config_that_is_missing_or_huge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read .*config\.json: No such file"):
        load_config(tmp_path / "none")
    written(tmp_path, WHOLE.to_json())
    monkeypatch.setattr(config_module, "MAX_CONFIG", 10)
    with pytest.raises(InputError, match="too large"):
        load_config(tmp_path)


def test_a_card_keeps_what_it_has_no_field_for() -> None:
    entries = {"licence": "Apache-2.0", "seed": 0, "weather": "fine"}
    assert Card.of(entries).to_dict() == entries
    with pytest.raises(InputError, match=r'the card: seed is "one", expected int'):
        Card.of({"seed": "one"})


def test_search_settings_out_of_bounds_are_refused() -> None:
    assert SearchSpec.of(SearchSpec(beams=3).search(frozenset({1}))) == SearchSpec(beams=3)
    with pytest.raises(InputError, match="beams is 0"):
        SearchSpec(beams=0).search(frozenset({1}))


def test_the_search_of_answers() -> None:
    spec = SearchSpec(beams=5, words_once=False, answer_tokens=10, answer_length_penalty=-1.0)
    assert spec.answers() == {"max_new_tokens": 10, "min_new_tokens": 0, "length_penalty": -1.0}
    assert SearchSpec().answers() == {}
    changed = spec.with_search(SearchSpec(beams=2, repetition_penalty=1.5).search(frozenset({1})))
    assert (changed.beams, changed.repetition_penalty, changed.answers()) == (2, 1.5, spec.answers())
    assert not changed.words_once
