"""BLIP-2 trained over a T5: the encoder-decoder's loss is transformers', it falls, and only the bridge learns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_blip2 import tiny_blip2
from torch import Tensor

from triptych.models import Blip2Model
from triptych.text.prompt import IGNORED
from triptych.train.blip2.answers import answer_logits, caption_logits
from triptych.train.blip2.batches import AnsweredQuestion, QuestionEncoder
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.start import with_lm
from triptych.train.blip2.trainer import Blip2Trainer
from triptych.train.data import TrainingData
from triptych.train.recipe import make_recipe
from triptych.train.trainer import train_bridges

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from test_blip2_t5_transformers import t5_tokenizer
from tiny_blip2_training import data

WIDTH = 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flan-T5 as transformers saves it."""
    tokenizer, path = t5_tokenizer(), tmp_path_factory.mktemp("t5")
    sizes = {"d_model": WIDTH, "d_kv": 14, "d_ff": 30, "num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(5)
    config = transformers.T5Config(
        **sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def blip2(folder: Path) -> Blip2Model:
    """A first stage with that T5 behind it, as ``train blip2 --stage 2 --lm DIR`` starts."""
    return with_lm(tiny_blip2(with_lm=False, scale=0.15), str(folder))


def theirs(folder: Path, prompt: Tensor, labels: Tensor) -> Tensor:
    """transformers' logits of the labels behind one prompt of embeddings ``[P, E]``, which ends with </s>."""
    peer = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    end = peer.get_input_embeddings()(torch.tensor([1]))
    logits: Tensor = peer(inputs_embeds=torch.cat([prompt, end])[None], labels=labels[None]).logits[0]
    return logits


def test_the_logits_of_captions_are_transformers(blip2: Blip2Model, folder: Path) -> None:
    lm = blip2.model.network
    soft, before, after = torch.randn(2, 3, WIDTH), torch.tensor([], dtype=torch.long), torch.tensor([20, 30])
    captions = torch.tensor([[[7, 9, 1], [11, 1, IGNORED]], [[8, 1, IGNORED], [5, 6, 1]]])
    found = caption_logits(lm, soft, (before, after), captions)
    prompts = [torch.cat([photo, lm.embed(after)]) for photo in soft]
    expected = [theirs(folder, prompts[i], row[row != IGNORED]) for i in range(2) for row in captions[i]]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_the_logits_of_answers_are_transformers(blip2: Blip2Model, folder: Path) -> None:
    """Prompts of several lengths, answers of several lengths; the encoder reads no answer."""
    model, tokenizer = blip2.model, blip2.tokenizer
    assert tokenizer is not None
    questions = [AnsweredQuestion((0,), "is it red?", "no"), AnsweredQuestion((1, 0), "which?", "the left one")]
    rows = QuestionEncoder(blip2.words, tokenizer, 3, blip2.prompts)(questions)
    image = model.image_keys_values(torch.randn(2, 9, 5))
    found = answer_logits(model, image, rows)
    queries = model.read_photos(image.select(rows.photos), (rows.question_ids, rows.question_mask)).queries
    soft = iter(model.soft_prompt(queries))
    expected = []
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        answer = labels[labels != IGNORED]
        prompt = ids[: int((labels != IGNORED).int().argmax()) + 1]
        pieces, at = list[Tensor](), 0
        while at < len(prompt):
            photo = int(prompt[at]) < 0
            pieces.append(next(soft) if photo else model.network.embed(prompt[at : at + 1]))
            at += 3 if photo else 1
        expected.append(theirs(folder, torch.cat(pieces), answer))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_the_loss_falls_and_the_bridge_alone_learns(blip2: Blip2Model) -> None:
    train_bridges(blip2.model)
    settings = {"stage": 2, "batch_size": 8, "beams": 1, "cells": 1.0, "window": 1.0, "mirror": False, "questions": 1.0}
    recipe = make_recipe(Blip2Recipe, settings | {"weights": {"caption": 1.0, "question": 1.0}})
    trainer = Blip2Trainer(blip2, TrainingData([data(8, "train", 0)], [data(4, "val", 1)]), recipe)
    before = {name: x.clone() for name, x in blip2.model.state_dict().items()}
    optimizer = torch.optim.AdamW([{"params": group["params"]} for group in trainer.parameter_groups()], 0.03)
    losses = []
    for step in range(15):
        loss = trainer.objective(*trainer.batch(range(8), step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = blip2.model.state_dict()
    learnt = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert {"projection.weight", "qformer.query_tokens"} <= learnt
    assert not any(name.startswith(("lm.", "vision_encoder.")) for name in learnt)
    assert all(p.grad is None for p in blip2.model.network.parameters())
    figures = trainer.figures(data(4, "val", 1))  # the language model writes captions and answers
    assert figures.keys() >= {"CIDEr-D", "accuracy"}
