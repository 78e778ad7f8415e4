"""BLIP-2 is trained on questions and answers alone, of photos that have no captions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_blip2 import tiny_blip2
from tiny_blip2_training import THINGS, data
from training_runs import log

from triptych.checkpoints.format import load_config
from triptych.data.english.kinds import Question
from triptych.errors import InputError
from triptych.text.prompt import IGNORED
from triptych.train.blip2.answers import answer_logits, right_answers
from triptych.train.blip2.batches import AnsweredQuestion, QuestionEncoder
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.blip2.validation import answer_accuracy
from triptych.train.crops import all_cells
from triptych.train.data import PhotoSet, TrainingData
from triptych.train.loop import fit
from triptych.train.recipe import make_recipe
from triptych.train.trainer import train_bridges


def without_captions(photos: int, split: str, seed: int) -> PhotoSet:
    """Photos with a question each."""
    name, items, features = data(photos, split, seed)
    answers = [{"question": "what is this?", "answer": THINGS[i % 4][0]} for i in range(photos)]
    plain = [replace(p, captions=(), extra={"vqa": [answer]}) for p, answer in zip(items, answers, strict=True)]
    return PhotoSet(name, plain, features)


@pytest.mark.usefixtures("own_accelerator")
def test_questions_alone_need_no_captions(tmp_path: Path) -> None:
    """A language model of random weights learns no answers here; only the answers are judged."""
    blip2 = tiny_blip2(scale=0.15)
    train_bridges(blip2.model)
    before = blip2.model.qformer.query_tokens.detach().clone()
    settings = {"stage": 3, "weights": {"question": 1.0}, "questions": 1.0, "epochs": 2, "batch_size": 8}
    recipe = make_recipe(Blip2Recipe, settings | {"precision": "fp32"})
    photos = TrainingData([without_captions(24, "train", 0)], [without_captions(8, "val", 1)])
    best = fit(tmp_path, Blip2Trainer(blip2, photos, recipe), recipe.loop)
    assert best["accuracy"] == 0 and "R@1" not in best and "CIDEr-D" not in best
    steps = [record for record in log(tmp_path) if "loss" in record]
    assert len(steps) == 6 and all(record["loss"] == pytest.approx(record["question"]) for record in steps)
    assert not torch.equal(blip2.model.qformer.query_tokens, before)
    assert load_config(tmp_path / "best").card.validation["accuracy"] == 0


def test_other_terms_need_captions() -> None:
    photos = TrainingData([without_captions(8, "train", 0)], [without_captions(8, "val", 1)])
    with pytest.raises(InputError, match=r"none has no captions.*questions alone"):
        Blip2Trainer(tiny_blip2(), photos, Blip2Recipe(3))


def test_an_answer_is_right_if_each_of_its_tokens_is_the_likeliest() -> None:
    blip2 = tiny_blip2()
    assert blip2.tokenizer is not None
    encode = QuestionEncoder(blip2.words, blip2.tokenizer, blip2.model.config.qformer.queries)
    features = data(3, "val", 1).features
    image = blip2.model.image_keys_values(all_cells(features, range(3)))
    rows = encode([AnsweredQuestion((i,), "what is it?", answer) for i, answer in enumerate(("ab", "c", "defg"))])
    is_label = rows.labels != IGNORED
    rows.labels[is_label] = answer_logits(blip2.model, image, rows).argmax(-1)
    assert right_answers(blip2.model, image, rows) == 3
    last = is_label[2].nonzero()[-1]
    rows.labels[2, last] += 1
    assert right_answers(blip2.model, image, rows) == 2
    rows.labels[2] += is_label[2].long()
    assert right_answers(blip2.model, image, rows) == 2
    assert answer_accuracy(blip2.model, features, [[Question("what is it?", "x", "object")]] * 3, encode, 0) == 0
