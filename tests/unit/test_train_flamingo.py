"""Flamingo's training objective on tiny random weights: what it sums, what it trains, what it is selected by."""

from pathlib import Path

import pytest
import torch
from tiny_flamingo import tiny_flamingo
from torch import Tensor

from triptych.data import Photo
from triptych.data.interleaved import Episode, PicturePart, Sequences, TextPart
from triptych.errors import InputError
from triptych.generate import Hypothesis
from triptych.models import FlamingoModel
from triptych.systems.flamingo import Flamingo
from triptych.text.prompt import IGNORED
from triptych.train.crops import all_cells, cells_of
from triptych.train.features import Features, JoinedFeatures
from triptych.train.flamingo.batches import SequenceEncoder, SequenceIds, TaskMixture, padded
from triptych.train.flamingo.objective import FlamingoObjective, token_logprobs
from triptych.train.flamingo.recipe import FlamingoRecipe
from triptych.train.flamingo.trainer import flamingo_parameter_groups
from triptych.train.flamingo.validation import flamingo_caption_prompt, is_answered, write_flamingo_captions
from triptych.train.recipe import make_recipe
from triptych.train.self_critical import CaptionReward
from triptych.train.trainer import train_bridges


class Cells:
    """Features of pictures in memory."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.maps = torch.randn(count, 5, 3, 3, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: tuple[list[int], list[int]]) -> Tensor:
        return torch.stack([self.maps[p] * (-1) ** m for p, m in zip(*rows, strict=True)])


@pytest.fixture
def flamingo() -> FlamingoModel:
    return tiny_flamingo()


def rows_of(flamingo: FlamingoModel) -> list[SequenceIds]:
    rows = SequenceEncoder(flamingo.tokenizer, flamingo.model.config.image_id, 100)
    return [
        rows(
            [PicturePart(0), TextPart(" a"), TextPart(" dog", True, True), PicturePart(1), TextPart(" cat", True, True)]
        ),
        rows([TextPart("no picture"), TextPart(" yes", True, True)]),
        rows([PicturePart(2), TextPart(" a long text about it", True, True)]),
    ]


def logprobs(model: Flamingo, rows: list[SequenceIds], pictures: Features) -> Tensor:
    ids, labels, counts = padded(rows, 0)
    shown = [picture for row in rows for picture in row.pictures]
    features = all_cells(pictures, shown) if shown else torch.zeros(0, 9, 5)
    return token_logprobs(model, features, counts.tolist(), ids, labels)


def test_a_padded_batch_learns_what_its_rows_learn(flamingo: FlamingoModel) -> None:
    model, rows, pictures = flamingo.model, rows_of(flamingo), Cells(3)
    together = logprobs(model, rows, pictures)
    for row, found in zip(rows, together, strict=True):
        alone = logprobs(model, [row], pictures)[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert not found[[label == IGNORED for label in row.labels] + [True] * (len(found) - len(alone))].any()
        assert (alone[[label != IGNORED for label in row.labels]] < 0).all()


def test_log_probabilities_are_those_of_the_labels_given_the_text_and_pictures_before(flamingo: FlamingoModel) -> None:
    """Flamingo eq. 1: log p(label | tokens up to its position, pictures before it)."""
    model, row, pictures = flamingo.model, rows_of(flamingo)[0], Cells(3)
    ids, labels, (count,) = padded([row], 0)
    visual_tokens = model.resampler(all_cells(pictures, row.pictures), torch.arange(1, int(count) + 1))
    every = model.lm.logits(model(ids, model.media(visual_tokens, [int(count)]))).log_softmax(-1)
    expected = every.gather(-1, labels.clamp_min(0)[..., None])[..., 0].where(labels != IGNORED, 0)
    torch.testing.assert_close(logprobs(model, [row], pictures), expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_weighted_mean_of_the_rows_means(flamingo: FlamingoModel) -> None:
    model, rows, pictures = flamingo.model, rows_of(flamingo), Cells(3)
    found = logprobs(model, rows, pictures)
    ids, labels, counts = padded(rows, 0)
    means = [-float(found[i].sum()) / sum(label != IGNORED for label in row.labels) for i, row in enumerate(rows)]
    objective = FlamingoObjective(model, ["caption", "binding"], FlamingoRecipe(weights={"binding": 3.0}))
    loss = objective(
        all_cells(pictures, [0, 1, 2]), counts, ids, labels, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), 0
    )
    assert float(loss) == pytest.approx((means[0] + 3 * means[1] + 3 * means[2]) / 3, rel=1e-5)
    assert objective.last == pytest.approx({"caption": means[0], "binding": (means[1] + means[2]) / 2}, rel=1e-5)


def rewarding(flamingo: FlamingoModel, **recipe: object) -> FlamingoObjective:
    """An objective that wants a photo's captions to say what its three photos' captions say."""
    photos = [Photo(str(i), "train", (text,), {}, Path("none")) for i, text in enumerate(("a dog", "a cat", "an owl"))]
    made = make_recipe(
        FlamingoRecipe,
        {"shares": {"scst": 0.5, "caption": 0.5}, "samples": 4, "max_new_tokens": 60, "temperature": 0.8, **recipe},
    )
    reward_fn = CaptionReward(photos, flamingo.tokenizer, 1.0)
    return FlamingoObjective(flamingo.model, ["caption", "scst"], made, flamingo_caption_prompt(flamingo), reward_fn)


def test_sampled_captions_are_as_likely_as_they_were_when_drawn(
    flamingo: FlamingoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss with a reward that is 1 for one sample and 0 for the others, from what ``generate`` draws at the recipe's temperature."""
    objective, cells = rewarding(flamingo), all_cells(Cells(2), [0, 1])
    drawn: list[list[list[Hypothesis]]] = []

    def rewarded(samples: list[list[Hypothesis]], photos: list[int]) -> Tensor:
        drawn.append(samples)
        assert photos == [7, 8]
        return torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])

    monkeypatch.setattr(CaptionReward, "__call__", lambda self, samples, photos: rewarded(samples, photos))
    loss, reward = objective.reward_loss(cells, [7, 8], seed=3)
    [first, other] = drawn[0]
    assert len({h.finished for h in (*first, *other)}) == 2 and len({h.ids for h in (*first, *other)}) == 8
    objective.reward_loss(cells, [7, 8], seed=4)
    assert not {h.ids for h in first} & {h.ids for h in drawn[1][0]}

    end, pad = flamingo.end_id, 0
    rows = [SequenceIds([*objective.prompt.tolist(), *h.ids, *([end] * h.finished)], [], [0]) for h in first]
    ids, _, _ = padded(rows, pad)
    tokens = flamingo.model.resampler(cells[:1], torch.ones(1, dtype=torch.long)).expand(4, -1, -1)
    logits = flamingo.model.lm.logits(flamingo.model(ids, flamingo.model.media(tokens, [1] * 4)))[:, :-1] / 0.8
    logits[..., flamingo.model.config.image_id] = -torch.inf
    each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    start = len(objective.prompt) - 1
    totals = [row[start : len(made.input_ids) - 1].sum() for row, made in zip(each, rows, strict=True)]
    written = sum(len(h.logprobs) for h in (*first, *other))
    torch.testing.assert_close(loss, -(totals[0] - sum(totals[1:]) / 3) / written, rtol=1e-4, atol=1e-6)
    assert reward == pytest.approx(1 / 8)


def test_rewarded_photos_stand_beside_sequences(flamingo: FlamingoModel) -> None:
    model, rows, pictures = flamingo.model, rows_of(flamingo), Cells(5)
    objective = rewarding(flamingo, weights={"scst": 3.0})
    mixed = [rows[0], SequenceIds([], [], [3]), rows[1], SequenceIds([], [], [4]), rows[2]]
    ids, labels, counts = padded(mixed, 0)
    shown = [picture for row in mixed for picture in row.pictures]
    photos = torch.tensor([0, 1, 0, 2, 0])
    loss = objective(all_cells(pictures, shown), counts, ids, labels, torch.tensor([0, 1, 0, 1, 0]), photos, 5)
    means = -logprobs(model, rows, pictures).sum(1) / torch.tensor([sum(i != IGNORED for i in r.labels) for r in rows])
    rewarded, reward = objective.reward_loss(all_cells(pictures, [3, 4]), [1, 2], 5)
    torch.testing.assert_close(loss, (means.sum() + 3 * 2 * rewarded) / 5)
    assert objective.last == pytest.approx(
        {"caption": float(means.mean()), "scst": float(rewarded), "reward": reward}, rel=1e-5
    )


def test_a_rewarded_photo_is_a_row_of_its_picture_alone() -> None:
    photos = [Photo(str(i), "train", (f"a dog and {i} cats",), {}, Path("none")) for i in range(6)]
    flamingo = tiny_flamingo()
    rows = SequenceEncoder(flamingo.tokenizer, flamingo.model.config.image_id, 100)
    made, tasks = TaskMixture(Sequences(photos, [], 0), rows, {"caption": 0.5, "scst": 0.5})([5, 2, 4, 0, 3, 1], seed=1)
    assert 0 < sum(tasks) < 6
    for photo, row, task in zip([5, 2, 4, 0, 3, 1], made, tasks, strict=True):
        assert row.pictures[0] == photo
        assert (row == SequenceIds([], [], [photo])) == (task == 1)


def test_sampling_leaves_autocast_the_gradients(flamingo: FlamingoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that autocast has cast while captions are drawn, without a gradient, must not be those of the loss."""
    monkeypatch.setattr(CaptionReward, "__call__", lambda self, samples, photos: torch.tensor([[1.0, 0, 0, 0]]))
    trained = dict(flamingo.model.xattn.named_parameters()) | dict(flamingo.model.resampler.named_parameters())
    for parameter in trained.values():
        parameter.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = rewarding(flamingo).reward_loss(all_cells(Cells(1), [0]), [0], seed=3)  # type: ignore[arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_shut_gates_open_and_the_frozen_parts_stay() -> None:
    flamingo = tiny_flamingo(scale=0)
    model = flamingo.model
    train_bridges(model)
    groups = flamingo_parameter_groups(model, make_recipe(FlamingoRecipe, {"gate_rate": 10}))
    assert [group.get("lr_scale", 1.0) for group in groups] == [1.0, 10] and groups[1]["weight_decay"] == 0
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    assert len(groups[1]["params"]) == 2 * len(model.xattn)
    frozen = {name: p.clone() for name, p in model.lm.named_parameters()}
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    rows, pictures = rows_of(flamingo), Cells(3)
    before = {name: p.clone() for name, p in model.resampler.named_parameters()}
    for _ in range(2):  # at first only the gates have a gradient
        (-logprobs(model, rows, pictures).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(abs(gate) > 0.005 for pair in model.gates() for gate in pair)
    assert all(not torch.equal(p, before[name]) for name, p in model.resampler.named_parameters())
    assert all(torch.equal(p, frozen[name]) for name, p in model.lm.named_parameters())


def test_pictures_of_two_sets_have_one_numbering() -> None:
    photos, drawings = Cells(2, 1), Cells(3, 2)
    found = cells_of(JoinedFeatures(photos, drawings)[[1, 4, 2], [0, 0, 1]])
    assert found.shape == (3, 9, 5)
    expected = [photos.maps[1], drawings.maps[2], -drawings.maps[0]]
    assert torch.equal(found, torch.stack(expected).flatten(2).mT)


def test_validation_takes_the_likeliest_name(flamingo: FlamingoModel) -> None:
    model = flamingo.model
    rows = SequenceEncoder(flamingo.tokenizer, model.config.image_id, 100)
    pictures = Cells(3)
    prompt = [
        PicturePart(0),
        TextPart(" dax", True, True),
        PicturePart(1),
        TextPart(" wug", True, True),
        PicturePart(2),
    ]
    scores = [float(logprobs(model, [rows.scored(prompt, name)], pictures).sum()) for name in ("dax", "wug")]
    best = int(scores[1] > scores[0])
    for answer in (0, 1):
        found = Episode(prompt, ("dax", "wug"), answer)
        assert is_answered(model, pictures, rows, 0, found) == (answer == best)


def test_validation_captions_are_those_of_the_tasks(flamingo: FlamingoModel) -> None:
    pictures = Cells(3)
    with torch.inference_mode():
        texts = write_flamingo_captions(flamingo, pictures, 3, batch=2)
    assert len(texts) == 3 and len(set(texts)) > 1
    with torch.inference_mode():
        assert write_flamingo_captions(flamingo, pictures, 1) == texts[:1]


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="unknown task captoin"):
        FlamingoRecipe(shares={"captoin": 1.0})
    with pytest.raises(InputError, match="no task is drawn"):
        FlamingoRecipe(shares={"caption": 0.0})
    with pytest.raises(InputError, match="samples must be 2 or more"):
        make_recipe(FlamingoRecipe, {"shares": {"scst": 1.0}, "samples": 1})
