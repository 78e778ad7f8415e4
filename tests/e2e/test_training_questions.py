"""BLIP-2 is trained on questions and answers alone, of photos that have no captions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import log
from tiny_blip2 import tiny_blip2
from tiny_blip2_training import THINGS, data

from triptych.checkpoints.format import load_checkpoint
from triptych.data.english.kinds import Question
from triptych.errors import InputError
from triptych.text.prompt import IGNORED
from triptych.train.blip2.batches import Asked, QuestionRows
from triptych.train.blip2.objective import Blip2Recipe, answer_logits, answered, right_answers, train
from triptych.train.crops import cells_of
from triptych.train.loop import LoopConfig


def asked(photos: int, split: str, seed: int):  # type: ignore[no-untyped-def]
    items, features = data(photos, split, seed)
    answers = [{"question": "what is this?", "answer": THINGS[i % 4][0]} for i in range(photos)]
    return [
        replace(p, captions=(), extra={"vqa": [answer]}) for p, answer in zip(items, answers, strict=True)
    ], features


def test_questions_alone_need_no_captions(tmp_path: Path) -> None:
    """A language model of random weights learns no answers here; it is told which were right, and nothing else is judged."""
    blip2 = tiny_blip2(scale=0.15)
    for name, parameter in blip2.model.named_parameters():
        parameter.requires_grad_(not name.startswith(("vision_encoder.", "lm.")))
    before = blip2.model.qformer.query_tokens.detach().clone()
    recipe = Blip2Recipe(3, {"question": 1.0}, questions=1.0, loop=LoopConfig(2, 8, precision="fp32"))
    best = train(tmp_path, blip2, asked(24, "train", 0), asked(8, "val", 1), recipe)
    assert best["accuracy"] == 0 and "R@1" not in best and "CIDEr-D" not in best
    steps = [record for record in log(tmp_path) if "loss" in record]
    assert len(steps) == 6 and all(record["loss"] == pytest.approx(record["question"]) for record in steps)
    assert not torch.equal(blip2.model.qformer.query_tokens, before)
    assert load_checkpoint(tmp_path / "best")[0].card.validation["accuracy"] == 0


def test_other_terms_need_captions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none has no captions.*questions alone"):
        train(tmp_path, tiny_blip2(), asked(8, "train", 0), asked(8, "val", 1), Blip2Recipe(3))


def test_an_answer_is_right_if_each_of_its_tokens_is_the_likeliest() -> None:
    blip2 = tiny_blip2()
    assert blip2.tokenizer is not None
    as_rows = QuestionRows(blip2.words, blip2.tokenizer, blip2.model.config.qformer.queries)
    _, features = data(3, "val", 1)
    image = blip2.model.image_keys_values(cells_of(features[range(3), [0] * 3]))
    rows = as_rows([Asked((i,), "what is it?", answer) for i, answer in enumerate(("ab", "c", "defg"))])
    told = rows.labels != IGNORED
    rows.labels[told] = answer_logits(blip2.model, image, rows).argmax(-1)
    assert right_answers(blip2.model, image, rows) == 3
    last = told[2].nonzero()[-1]
    rows.labels[2, last] += 1
    assert right_answers(blip2.model, image, rows) == 2
    rows.labels[2] += told[2].long()
    assert right_answers(blip2.model, image, rows) == 2
    assert answered(blip2.model, features, [[Question("what is it?", "x", "object")]] * 3, as_rows, 0) == 0
