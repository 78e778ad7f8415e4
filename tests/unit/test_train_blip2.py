"""BLIP-2's training: which parameters learn at which rate, whose prompts it reads, what gradients cross processes, other encoders."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny_blip2 import tiny_blip2

from triptych.data import Photo
from triptych.errors import InputError
from triptych.models import Blip2Model
from triptych.nn.configs import ViTConfig
from triptych.nn.vit import ViT
from triptych.systems.blip2 import Blip2
from triptych.text.prompt import BLIP2_OPT, IGNORED, INSTRUCT_BLIP, Prompts
from triptych.text.tokenizer import TextTokenizer
from triptych.train.blip2.batches import PICTURE, AnsweredQuestion, CaptionPieces, CaptionTexts
from triptych.train.blip2.objective import all_processes
from triptych.train.blip2.prompts import blip2_caption_prompt
from triptych.train.blip2.recipe import Blip2Recipe, Blip2Start
from triptych.train.blip2.start import new_blip2, train_blip2
from triptych.train.blip2.trainer import Blip2Trainer, blip2_parameter_groups
from triptych.train.blip2.validation import write_blip2_captions
from triptych.train.crops import crop_cells
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.features import cached_features
from triptych.train.recipe import make_recipe
from triptych.train.sources import Sources
from triptych.train.trainer import train_bridges

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from tiny_blip2_training import data


def with_prompts(prompts: Prompts) -> Blip2Model:
    blip2 = tiny_blip2()
    return replace(blip2, config=msgspec.structs.replace(blip2.config, prompts=prompts))


def test_what_begins_as_bert_and_the_projection_learn_at_their_own_rates() -> None:
    model = tiny_blip2().model
    train_bridges(model)
    groups = blip2_parameter_groups(model, make_recipe(Blip2Recipe, {"bert_rate": 0.2, "projection_rate": 7.0}))
    assert [group.get("lr_scale", 1.0) for group in groups] == [1.0, 0.2, 7.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rest, bert, projection = ({names[id(p)] for p in group["params"]} for group in groups)
    assert projection == {"projection.weight", "projection.bias"}
    assert all(
        ".self_attention." in name or ".text_mlp." in name or "position" in name or "norm" in name for name in bert
    )
    assert {"qformer.query_tokens", "heads.temperature"} <= rest and any("cross_attention" in name for name in rest)
    assert any(".query_mlp." in name for name in rest) and not any(".self_attention." in name for name in rest)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert rest | bert | projection == trained and len(rest) + len(bert) + 2 == len(trained)
    assert not any(name.startswith(("lm.", "vision_encoder.")) or "word_embeddings" in name for name in trained)
    assert len(blip2_parameter_groups(tiny_blip2(with_lm=False).model, Blip2Recipe())) == 2


@pytest.mark.parametrize("prompts", [Prompts(), BLIP2_OPT, INSTRUCT_BLIP, Prompts("look: <image> it shows")])
def test_captions_are_learnt_behind_the_prompt_of_the_checkpoint(prompts: Prompts) -> None:
    """The objective's soft prompt stands where the checkpoint's prompt has the photo; the same model with other words loses otherwise."""
    blip2 = with_prompts(prompts)
    tokenizer = blip2.tokenizer
    assert tokenizer is not None
    made = blip2_caption_prompt(blip2)
    before, after = prompts.caption.split("<image>")
    assert tokenizer.decode(list(made.before)) == before and tokenizer.decode(list(made.after)) == after
    recipe = make_recipe(
        Blip2Recipe, {"stage": 2, "weights": {"caption": 1.0}, "cells": 1.0, "window": 1.0, "mirror": False}
    )
    objective = Blip2Trainer(blip2, TrainingData([data(4, "train", 0)], [data(4, "val", 1)]), recipe).objective
    soft, lm = torch.randn(1, 3, 16), blip2.model.network
    caption = torch.tensor([[tokenizer.encode(" dog")]])
    found = objective.caption_logits(soft, caption)
    ids = [torch.tensor(x, dtype=torch.long) for x in (made.before, (*made.after, *caption[0, 0, :-1].tolist()))]
    row = torch.cat([lm.embed(ids[0]), soft[0], lm.embed(ids[1])])[None]
    expected = lm.logits(lm(row))[0, -caption.shape[2] :]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert made.instruction is not None
    read = blip2.words.encode([after.strip()] if prompts.whole else ["describe the photo"])[0]
    assert torch.equal(made.instruction[0], read)


def test_a_prompt_that_ends_with_the_photo_is_refused() -> None:
    with pytest.raises(InputError, match="ends with the photo"):
        blip2_caption_prompt(with_prompts(Prompts("a photo: <image>")))


def test_questions_are_learnt_behind_the_prompt_of_the_checkpoint() -> None:
    blip2 = tiny_blip2()
    assert blip2.tokenizer is not None
    photos = TrainingData([data(4, "train", 0)], [data(4, "val", 1)])
    recipe = make_recipe(Blip2Recipe, {"stage": 3})
    encoders = [Blip2Trainer(with_prompts(p), photos, recipe).encode_questions for p in (Prompts(), BLIP2_OPT)]
    ours, theirs = (encode([AnsweredQuestion((0, 1), "is it red?", "no")]) for encode in encoders if encode)

    def text(ids: torch.Tensor) -> str:
        return blip2.tokenizer.decode([i for i in ids.tolist() if i != PICTURE])  # type: ignore[union-attr]

    assert text(ours.input_ids[0]) == "Left photo: \nRight photo: \nQuestion: is it red?\nAnswer: no"
    assert text(theirs.input_ids[0]) == "Question: is it red? Answer: no"
    assert (theirs.input_ids[0, :6] == PICTURE).all() and (ours.input_ids == PICTURE).sum() == 6
    assert text(theirs.labels[0][theirs.labels[0] != IGNORED]) == " no"


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_gradients_flow_through_what_is_gathered() -> None:
    own = torch.randn(3, 2, requires_grad=True)
    weights = torch.randn(3, 2)
    gathered = all_processes(own)
    assert torch.equal(gathered, own)
    (gathered * weights).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own.grad, weights)


def test_a_crop_keeps_the_class_token() -> None:
    features = torch.arange(17.0)[None, :, None].expand(5, 17, 1)
    drawn = crop_cells(features, (4, 4), 0.5, 0.7, seed=3)[..., 0]
    assert drawn.shape == (5, 9) and (drawn[:, 0] == 0).all() and (drawn[:, 1:] >= 1).all()


def test_a_model_with_a_vision_transformer_trains(tmp_path: Path) -> None:
    """As a converted BLIP-2: the encoder is a transformer that gives its class token too."""
    tiny = tiny_blip2(scale=0.15)
    vit = ViT(ViTConfig(5, 1, 1, 8, 4, 12, class_token=True)).eval()
    model = Blip2(tiny.model.config, vit, tiny.model.network)
    train_bridges(model)
    photos = []
    for i in range(4):
        Image.new("RGB", (12, 12), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        photos.append(Photo(str(i), "train", (f"a dog {i}", "one cat"), {}, tmp_path / f"{i}.png"))
    photo_set = PhotoSet("red", photos, cached_features(photos, vit, tmp_path / "cache"))
    recipe = make_recipe(Blip2Recipe, {"stage": 3, "batch_size": 4, "cells": 0.7})
    trainer = Blip2Trainer(replace(tiny, model=model), TrainingData([photo_set], [photo_set]), recipe)
    items, seed = trainer.batch([0, 1, 2, 3], 0)
    assert items.image_features.shape == (4, 1 + round(0.7 * 9), 5)
    trainer.objective(items, seed).backward()
    assert model.projection is not None and model.projection.weight.grad is not None
    assert trainer.figures(photo_set).keys() >= {"CIDEr-D", "R@1", "accuracy"}


def test_the_language_model_alone_learns_what_a_model_wrote() -> None:
    blip2 = tiny_blip2()
    photo = Photo("1", "train", ("a dog",), {}, Path("1"), written=("a cat", "a bird"))
    texts = CaptionTexts([photo], blip2.words, blip2.tokenizer, 8, 20)
    assert blip2.tokenizer is not None
    learnt = [blip2.tokenizer.decode(ids[:-1]).strip() for ids in texts.tokens[0]]
    assert learnt == ["a dog", "a cat", "a bird"] and len(texts.pieces[0][0]) == 1


def test_grounded_generation_begins_with_dec_and_learns_the_words_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(Blip2Recipe, {"stage": 1, "weights": {"itg": 1.0}, "batch_size": 4})
    trainer = Blip2Trainer(tiny_blip2(), TrainingData([data(4, "train", 0)], [data(4, "val", 1)]), recipe)
    qformer, words = trainer.objective.model.qformer, trainer.blip2.words
    pieces = CaptionPieces(*map(torch.from_numpy, words.encode_arrays(["a dog", "a cat"])))
    read: list[torch.Tensor] = []
    continue_text = qformer.continue_text

    def recorded(input_ids: torch.Tensor, *rest: Any) -> Any:
        read.append(input_ids)
        return continue_text(input_ids, *rest)

    monkeypatch.setattr(qformer, "continue_text", recorded)
    image = trainer.objective.model.image_keys_values(torch.randn(2, 4, qformer.config.image_dim))
    trainer.objective.writing_loss(qformer.encode_image(image), pieces, 1)
    assert read[0][:, 0].tolist() == [words.dec] * 2 != pieces.input_ids[:, 0].tolist()
    assert torch.equal(read[0][:, 1:], pieces.input_ids[:, 1:])


def with_expectations() -> Blip2Trainer:
    recipe = make_recipe(Blip2Recipe, {"stage": 1, "weights": {"itc": 1.0}, "agreement": 2.0, "batch_size": 4})
    sets = TrainingData([data(24, "train", 0)], [data(6, "val", 1), data(8, "val", 2)])
    return Blip2Trainer(tiny_blip2(), sets, recipe)


def test_a_batch_says_how_well_its_photos_and_captions_agree(tmp_path: Path) -> None:
    made = with_expectations()
    assert made.batch([3, 5], 0)[0].agreement is None
    made.prepare(tmp_path, new=True)
    assert made.expected is not None
    rows = [3, 5, 8, 1]
    agreement = made.batch(rows, 0)[0].agreement
    assert agreement is not None
    np.testing.assert_array_equal(agreement.photos.numpy(), made.expected.directions[rows])
    captions = {caption: vector for row in rows for caption in made.photos[row].captions
                for vector in made.expected.consensus.vectors([caption])}  # fmt: skip
    assert len(agreement.captions) == 8
    for place, vector in enumerate(agreement.captions.numpy()):
        assert any(np.array_equal(vector, captions[text]) for text in made.photos[rows[place // 2]].captions)


def test_validation_counts_the_agreement(tmp_path: Path) -> None:
    """A consensus that expects the opposite of each photo's own captions hides them all, whatever contrast says."""
    made = with_expectations()
    made.prepare(tmp_path, new=True)
    assert made.expected is not None
    second = made.data.validation[1]
    before = made.figures(second)["R@1"]
    texts = [caption for photo in second.photos for caption in photo.captions]
    own = made.expected.consensus.vectors(texts).reshape(len(second.photos), -1, made.expected.directions.shape[1])
    made.expected.directions[-len(second.photos) :] = -100 * own.mean(1)
    assert made.figures(second)["R@1"] == 0 < before


def test_a_new_model_sorts_by_contrast_more_than_by_matching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog\n")
    monkeypatch.setattr(
        "triptych.train.blip2.start.vision_encoder", lambda *given, **settings: tiny_blip2().model.vision_encoder
    )
    monkeypatch.setattr("triptych.train.blip2.start.part_path", lambda *given: tmp_path / "vocab.txt")
    monkeypatch.setattr("triptych.train.blip2.start.load_tensors", lambda path: {})
    monkeypatch.setattr("triptych.train.blip2.start.load_bert", lambda qformer, tensors: None)
    assert new_blip2(Blip2Start()).model.config.contrast_weight == 40


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"stage": 2, "init": "blip2", "agreement": 1.0, "weights": {"caption": 1.0}},
            "--agreement is part of contrast",
        ),
        ({"stage": 1, "guidance": 1.0}, "--guidance is part of captions"),
    ],
)
def test_what_no_term_would_use_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        train_blip2(Sources((tmp_path,)), tmp_path / "run", make_recipe(Blip2Recipe, settings))


@pytest.fixture
def whole_words(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Words that are tokens of the tiny language model, whose own tokens are shorter."""
    tokens = {"dog": 2, "cat": 4, "grass": 6, "red": 1}
    monkeypatch.setattr(TextTokenizer, "word_token", lambda self, word: tokens.get(word))
    return tokens


def test_captions_are_learnt_beside_the_words_to_expect(tmp_path: Path, whole_words: dict[str, int]) -> None:
    """-log p(caption) of the language model's logits plus what is expected of the photo's words; the loss of two photos, padded."""
    recipe = make_recipe(Blip2Recipe, {"stage": 2, "weights": {"caption": 1.0}, "guidance": 2.0, "precision": "fp32"})
    made = Blip2Trainer(tiny_blip2(), TrainingData([data(24, "train", 0)], [data(6, "val", 1)]), recipe)
    assert made.batch([3, 5], 0)[0].guidance is None
    made.prepare(tmp_path, new=False)
    items, _ = made.batch([3, 5], 0)
    assert made.expected is not None and items.guidance is not None and items.lm_captions is not None
    columns = made.expected.consensus.columns
    known = [word for word in whole_words if word in columns]
    assert len(known) > 1 and len(items.guidance.tokens) == len(known) and items.agreement is None
    for word in known:
        column = columns[word]
        (place,) = np.flatnonzero(items.guidance.tokens.numpy() == whole_words[word])
        expected = 2 * made.expected.consensus.rarity[column] * made.expected.directions[[3, 5], column]
        np.testing.assert_allclose(items.guidance.weights.numpy()[:, place], expected, rtol=1e-5)
    soft = torch.randn(2, 3, 16)
    captions = torch.tensor([[[1, 2, IGNORED], [3, IGNORED, IGNORED]], [[4, 5, 6], [2, 1, IGNORED]]])
    logits = made.objective.caption_logits(soft, captions)
    owners = [0, 0, 0, 1, 1, 1, 1, 1]
    for row, photo in enumerate(owners):
        for token, weight in zip(items.guidance.tokens.tolist(), items.guidance.weights[photo].tolist(), strict=True):
            logits[row, token] += weight
    wanted = torch.nn.functional.cross_entropy(logits, captions[captions != IGNORED])
    torch.testing.assert_close(made.objective.caption_loss(soft, captions, items.guidance), wanted)
    assert not torch.allclose(made.objective.caption_loss(soft, captions), wanted)


@pytest.mark.usefixtures("whole_words")
def test_validation_captions_are_guided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(Blip2Recipe, {"stage": 2, "weights": {"caption": 1.0}, "guidance": 1.0, "precision": "fp32"})
    made = Blip2Trainer(tiny_blip2(), TrainingData([data(24, "train", 0)], [data(6, "val", 1)]), recipe)
    photos = made.data.validation[0]
    written: list[list[str]] = []

    def captions_of(*given: Any) -> list[str]:
        written.append(write_blip2_captions(*given))
        return written[-1]

    monkeypatch.setattr("triptych.train.blip2.trainer.write_blip2_captions", captions_of)
    made.figures(photos)
    made.prepare(tmp_path, new=False)
    assert made.expected_words is not None
    made.expected_words.scale = 0 * made.expected_words.scale
    made.figures(photos)
    made.expected_words.scale = made.expected_words.scale + 50
    made.figures(photos)
    unguided, with_nothing, guided = written
    assert len(unguided) == 6 and unguided == with_nothing != guided
