"""The table of systems: every name resolves, and a fourth system costs one package and one row."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
from test_cli import photo, run  # noqa: F401

import triptych
from triptych.checkpoints.config import CheckpointConfig, EncoderSpec
from triptych.checkpoints.format import save_checkpoint
from triptych.checkpoints.locate import BUNDLED
from triptych.errors import InputError
from triptych.models import registry
from triptych.models.registry import SYSTEMS, System, system_of

TOY = """
'''A system whose every photo is as bright as it is.'''

from dataclasses import dataclass

import torch
from torch import nn

from triptych.checkpoints.config import Card, CheckpointConfig, EncoderSpec, SearchSpec
from triptych.checkpoints.format import load_typed, save_checkpoint
from triptych.checkpoints.place import load_strict
from triptych.io.images import load_image, pixel_values
from triptych.io.pixels import PixelSpec
from triptych.tasks.answer import Answer


@dataclass(frozen=True)
class ToyConfig:
    word: str


class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.scale = config, nn.Parameter(torch.ones(()))

    def forward(self, pixels):
        return self.scale * pixels.mean()


@dataclass(frozen=True)
class ToyModel:
    model: Toy
    config: CheckpointConfig[ToyConfig]


def save_toy(directory, toy, card, *, dtype=torch.float32):
    save_checkpoint(directory, config=toy.config, tensors=toy.model.state_dict())


def load_toy(directory, *, dtype=torch.float32):
    config, tensors = load_typed(directory, "toy", ToyConfig)
    model = Toy(config.model)
    load_strict(model, tensors, source=directory)
    return ToyModel(model, config)


class TorchToy:
    def __init__(self, toy, device):
        self.toy = toy


class ToyTasks:
    def __init__(self, engine, name):
        self.toy, self.name = engine.toy, name

    def search(self, **settings):
        return self.toy.config.search.search(frozenset({0}))

    def caption(self, images, *, explain=False, **settings):
        brightness = self.toy.model(pixel_values(load_image(images), PixelSpec(8, (0, 0, 0), (1, 1, 1))))
        return Answer(f"{self.toy.config.model.word} {brightness:.1f}", self.name, 0.0, (), ())

    def info(self):
        return {"model": self.name, "system": "toy", "card": self.toy.config.card.to_dict()}


def toy_run(**options):
    return options
"""


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("field", System.__dataclass_fields__)
def test_every_name_resolves(name: str, field: str) -> None:
    assert callable(SYSTEMS[name].resolve(field))


def test_shipped_models_are_of_their_systems() -> None:
    for name, system in SYSTEMS.items():
        assert system_of(BUNDLED / name) is system


def test_an_unknown_system_is_named(tmp_path: Path) -> None:
    config = CheckpointConfig(system="clip", model={}, encoder=EncoderSpec("tiny", stored=True))
    save_checkpoint(tmp_path / "m", config=config, tensors={})
    with pytest.raises(InputError, match=r"m/config.json: system is 'clip', expected one of sat, flamingo, blip2"):
        triptych.load(tmp_path / "m")


def test_a_fourth_system_costs_one_package_and_one_row(
    tmp_path: Path,
    photo: Path,  # noqa: F811
    run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "toy.py").write_text(textwrap.dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    names = ("Toy", "ToyModel", "load_toy", "save_toy", "TorchToy", "ToyTasks", "toy_run")
    monkeypatch.setitem(registry.SYSTEMS, "toy", System(*(f"toy:{name}" for name in names)))
    toy = SYSTEMS["toy"]
    module = toy.resolve("module")(sys.modules["toy"].ToyConfig("bright"))
    config = CheckpointConfig(system="toy", model=module.config, encoder=EncoderSpec("none", stored=True))
    toy.resolve("save")(tmp_path / "saved", toy.resolve("model")(module, config), config.card)
    answer = triptych.load(tmp_path / "saved").caption(str(photo))
    assert answer.text.startswith("bright 0.")
    result = run("caption", photo, "--model", tmp_path / "saved", "--json")
    assert (result.code, json.loads(result.out)["caption"]) == (0, answer.text)
    result = run("info", tmp_path / "saved", "--json")
    assert (result.code, json.loads(result.out)["system"]) == (0, "toy")
