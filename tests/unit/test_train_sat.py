"""Show, Attend and Tell's training: what its losses sum, which parameters learn at which rate, more words for a trained model."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_average import save_tiny
from torch import Tensor

from triptych.checkpoints.config import Card
from triptych.checkpoints.locate import load_config
from triptych.errors import InputError
from triptych.generate import generate
from triptych.models import save_sat
from triptych.nn.cnn import EfficientNetLite
from triptych.text.prompt import IGNORED
from triptych.text.vocabulary import UNK
from triptych.train.data import TrainingData
from triptych.train.recipe import make_recipe
from triptych.train.sat.new_words import with_new_words
from triptych.train.sat.objective import CrossEntropy
from triptych.train.sat.recipe import SatLoss, SatNetwork, SatRecipe
from triptych.train.sat.start import sat_config, started_sat, train_sat
from triptych.train.sat.trainer import SatTrainer
from triptych.train.sources import Sources

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from tiny_training import data, tiny_sat


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 3, 2, 2, generator=generator)
    input_ids = torch.randint(4, 9, (3, 2, 5), generator=generator)
    labels = torch.randint(4, 9, (3, 2, 5), generator=generator)
    labels[0, 1, 3:] = IGNORED
    return maps, input_ids, labels


@pytest.mark.parametrize(("reduction", "weight"), [("sum", 1.0), ("mean", 1.0), ("mean", 2.5), ("mean", 0.0)])
def test_equation_14_adds_the_penalty_to_the_cross_entropy(reduction: str, weight: float) -> None:
    """L = -log p(y | x) + lambda sum_i (1 - sum_t alpha_ti)^2, from the model's own alpha."""
    model = tiny_sat().model.eval()
    maps, input_ids, labels = batch()
    loss = CrossEntropy(model, SatLoss(label_smoothing=0.0, penalty=weight, penalty_reduction=reduction))  # type: ignore[arg-type]
    found = loss(maps, input_ids, labels, 0)
    output = model(maps, input_ids)
    entropy = F.cross_entropy(output.logits[labels != IGNORED], labels[labels != IGNORED])
    alpha = output.alpha * (labels != IGNORED)[..., None]
    each = (1 - alpha.sum(2)).square()  # [B, K, L]
    penalty = each.sum(-1).mean() if reduction == "sum" else each.mean()
    assert penalty > 0.01
    torch.testing.assert_close(found, entropy + weight * penalty)


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (1.0, 40), (0.5, 20)])
def test_hard_attention_draws_cells_in_its_share_of_the_steps(share: float, drawn: int) -> None:
    loss = CrossEntropy(tiny_sat("hard").model, SatLoss(hard_share=share))
    steps: list[int] = []
    loss.hard_loss.forward = lambda output, labels: (steps.append(1), output.logits.sum())[1]  # type: ignore[method-assign]
    for seed in range(40):
        loss(*batch(), seed)
    assert abs(len(steps) - drawn) <= (8 if 0 < share < 1 else 0)


def trainer(**settings: object) -> SatTrainer:
    sat = tiny_sat()
    sat.model.unfreeze()
    photos = TrainingData([data(24, "train", 0)], [data(6, "val", 1)])
    return SatTrainer(sat, photos, make_recipe(SatRecipe, settings))


def test_the_encoders_tail_learns_at_its_own_rate_and_the_trunk_not_at_all() -> None:
    made = trainer(tail_rate=0.07)
    decoder, tail = made.parameter_groups()
    model = made.sat.model
    assert {id(p) for p in decoder["params"]} == {
        id(p) for p in model.decoder.parameters()
    } and "lr_scale" not in decoder
    assert {id(p) for p in tail["params"]} == {id(p) for p in model.encoder.layers[1:].parameters()}
    assert tail["lr_scale"] == 0.07
    model.encoder.requires_grad_(False)
    assert len(made.parameter_groups()) == 1


def test_a_batch_holds_the_captions_of_its_rows_and_half_of_the_mirror_images() -> None:
    made = trainer(captions_per_photo=2)
    maps, input_ids, labels, seed = made.batch(list(range(24)), 5)
    assert maps.shape == (24, 3, 2, 2) and seed == 5 and input_ids.shape == labels.shape
    vocabulary = made.sat.vocabulary
    for row in (0, 7, 23):
        words = [vocabulary.decode(ids[ids != IGNORED].tolist()) for ids in labels[row]]
        assert [text.lower().rstrip(".") for text in words] == list(made.data.photos[row].captions)
    own = [torch.equal(m, torch.from_numpy(made.data.train[0].features.maps[i, 0]).float()) for i, m in enumerate(maps)]  # type: ignore[attr-defined]
    assert 4 < sum(own) < 20


def test_new_words_are_added_behind_the_old_ones() -> None:
    sat = tiny_sat()
    captions = ["a purple square"] * 3 + ["a purple and golden circle"] * 2 + ["once"]
    more = with_new_words(sat, captions, 2)
    known = len(sat.vocabulary)
    assert more.vocabulary.words[:known] == sat.vocabulary.words
    assert set(more.vocabulary.words[known:]) == {"purple", "golden", "and", "circle"}
    assert more.vocabulary.words[known] == "purple" and UNK not in more.vocabulary.encode("a golden circle")
    for name, tensor in sat.model.state_dict().items():
        assert torch.equal(more.model.state_dict()[name][: len(tensor)], tensor)
    rows = more.model.decoder.output.weight[known:]
    assert rows.std() < sat.model.decoder.output.weight.std() and not torch.equal(rows[0], rows[1])
    maps = data(6, "val", 1).features[range(6), [0] * 6]
    before = [h[0].ids for h in generate(sat.model.eval(), maps, sat.search)]
    assert [h[0].ids for h in generate(more.model.eval(), maps, more.search)] == before
    assert all(p.requires_grad for p in more.model.decoder.parameters())
    assert with_new_words(sat, captions, 9) is sat


def test_a_variant_has_the_choices_that_are_given() -> None:
    paper = sat_config(SatNetwork(hidden_dim=16), 20, 6)
    assert paper.hidden_dim == 16 and paper.gate == sat_config(SatNetwork(), 20, 6).gate
    assert sat_config(SatNetwork(gate="vector"), 20, 6).gate == "vector"
    assert sat_config(SatNetwork(variant="tutorial"), 20, 6) != sat_config(SatNetwork(), 20, 6)


def guided(photos: TrainingData, run: Path, new: bool = True) -> SatTrainer:
    settings = {"objective": "scst", "guidance": 1.0, "captions_per_photo": 4, "mirror": False}
    made = SatTrainer(tiny_sat(), photos, make_recipe(SatRecipe, settings))
    made.prepare(run, new)
    return made


def test_no_photo_is_guided_by_its_own_captions(tmp_path: Path) -> None:
    train, validation = data(24, "train", 0), data(6, "val", 1)
    exchanged = dict(zip(range(0, 24, 4), range(20, -1, -4), strict=True))  # captions of photos of the first part
    other = [replace(p, captions=train.photos[exchanged.get(i, i)].captions) for i, p in enumerate(train.photos)]
    made = [guided(TrainingData([each], [validation]), tmp_path) for each in (train, train._replace(photos=other))]
    first, second = (each.batch(range(24), 0)[-1].weights for each in made)
    same = [np.array_equal(*pair) for pair in zip(first, second, strict=True)]
    assert same == [row % 4 == 0 for row in range(24)] and np.abs(first[0]).max() > 0.1


def test_a_resumed_run_has_the_same_guidance(tmp_path: Path) -> None:
    photos = TrainingData([data(24, "train", 0)], [data(6, "val", 1)])
    weights = guided(photos, tmp_path).batch(range(5), 0)[-1].weights
    made = SatTrainer(tiny_sat(), photos, make_recipe(SatRecipe, {"objective": "scst", "guidance": 1.0}))
    torch.nn.init.normal_(next(made.sat.model.encoder.layers[1:].parameters()))
    made.prepare(tmp_path, new=False)
    assert np.array_equal(made.batch(range(5), 0)[-1].weights, weights)
    (tmp_path / "pooled.npy").unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        made.prepare(tmp_path, new=False)


def test_samples_and_their_likelihood_are_guided(tmp_path: Path) -> None:
    """Two words are made certain, one of two at each place: only their scores have a gradient."""
    made = guided(TrainingData([data(24, "train", 0)], [data(6, "val", 1)]), tmp_path)
    maps, rows, seed, guidance = made.batch(range(24), 0)
    words = [made.sat.vocabulary.word_token(word) for word in ("red", "square")]
    guidance.weights[:, np.isin(guidance.tokens, words)] = 100
    made.objective(maps, rows, seed, guidance).backward()
    gradient = made.sat.model.decoder.output.bias.grad
    assert set(gradient.abs().topk(2).indices.tolist()) == set(words) and gradient.abs().sort().values[-3] < 1e-6


def test_cross_entropy_is_not_guided(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--guidance is part of self-critical training"):
        train_sat(Sources((tmp_path,)), tmp_path / "run", make_recipe(SatRecipe, {"guidance": 1.0}))


def test_validation_is_guided(tmp_path: Path) -> None:
    made = guided(TrainingData([data(24, "train", 0)], [data(6, "val", 1), data(8, "val", 2)]), tmp_path)
    assert made.expected is not None
    expected = made.expected.expected
    first, second = (expected.of_set(each) for each in made.data.validation)
    assert np.array_equal(np.concatenate([first, second]), expected.directions[24:]) and len(first) == 6
    before = made.figures(made.data.validation[1])
    made.expected.scale = 0 * made.expected.scale
    assert made.figures(made.data.validation[1]) != before


def test_a_checkpoint_says_after_which_layer_its_encoder_was_trained(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "sat", EfficientNetLite(cut=22, image_size=64))
    for cut, wanted in ((20, 20), (None, 22)):
        sat = started_sat(str(folder), cut)
        assert sat.model.encoder.cut == wanted
        save_sat(tmp_path / "trained", sat, Card())
        assert load_config(tmp_path / "trained").encoder.cut == wanted
    with pytest.raises(InputError, match="--cut is 23, expected 1 to 22"):
        started_sat(str(folder), 23)
