"""The mean of the weights of several checkpoints."""

from pathlib import Path

import pytest
import torch
from tiny_flamingo import tiny_flamingo

from triptych.checkpoints.config import Card, CheckpointConfig, EncoderSpec
from triptych.errors import InputError
from triptych.models import SatModel, load_sat, sat_search, save_flamingo, save_sat
from triptych.models.average import average_checkpoints
from triptych.nn.cnn import EfficientNetLite
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary


def save_tiny(directory: Path, encoder: EfficientNetLite, letters: str = "abcdefg", hidden: int = 32) -> Path:
    """A Show, Attend and Tell of random weights that holds its encoder."""
    words = WordVocabulary((*SPECIALS, *letters))
    sizes = {"embed_dim": 32, "hidden_dim": hidden, "attention_dim": 32}
    model = ShowAttendTell(ShowAttendTellConfig(len(words), 1280, **sizes), encoder)
    spec = EncoderSpec(encoder.name, stored=True, image_size=64, cut=encoder.cut)
    config = CheckpointConfig(system="sat", model=model.config, encoder=spec)
    save_sat(directory, SatModel(model.eval(), words, sat_search(max_new_tokens=5), config), Card(name=directory.name))
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root, encoder = tmp_path_factory.mktemp("checkpoints"), EfficientNetLite(cut=22, image_size=64)
    for name in ("first", "second", "third"):
        save_tiny(root / name, encoder)
    save_tiny(root / "words", encoder, "gfedcba")
    save_tiny(root / "wide", encoder, hidden=48)
    save_flamingo(root / "flamingo", tiny_flamingo(), Card())
    return root


def test_every_weight_is_the_mean(root: Path, tmp_path: Path) -> None:
    folders = [root / name for name in ("first", "second", "third")]
    average_checkpoints(folders, tmp_path / "mean")
    mean = load_sat(tmp_path / "mean")
    states = [load_sat(folder).model.state_dict() for folder in folders]
    different = 0
    for name, tensor in mean.model.state_dict().items():
        expected = torch.stack([state[name].float() for state in states]).mean(0)
        assert torch.allclose(tensor.float(), expected, atol=1e-6), name
        different += not torch.equal(states[0][name], states[1][name])
    assert different > 10
    assert mean.config.card.name == "first" and mean.config.card.notes["mean_of"] == 3


def test_layers_that_one_left_frozen_count_as_they_were(root: Path, tmp_path: Path) -> None:
    more = save_tiny(tmp_path / "more", EfficientNetLite(cut=17, image_size=64))
    average_checkpoints([root / "first", more, root / "second"], tmp_path / "mean")
    mean = load_sat(tmp_path / "mean")
    assert mean.config.encoder.cut == 17 and mean.config.card.name == "more"
    first, tuned, second = (load_sat(folder).model.state_dict() for folder in (root / "first", more, root / "second"))
    name = "encoder.layers.18.expand.weight"
    assert torch.equal(first[name], second[name]) and not torch.equal(first[name], tuned[name])
    expected = (2 * first[name] + tuned[name]) / 3
    assert torch.allclose(mean.model.state_dict()[name], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "1 checkpoints: give two or more"),
        (["first", "wide"], "wide has another model than"),
        (["first", "words"], "words has another vocabulary than"),
        (["first", "flamingo"], "flamingo is another system than"),
    ],
)
def test_only_one_architecture_has_a_mean(root: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        average_checkpoints([root / name for name in names], tmp_path / "none")
    assert not (tmp_path / "none").exists()
