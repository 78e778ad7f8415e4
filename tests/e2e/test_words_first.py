"""Stage 2 begins with a projection by which soft prompts say what the photos show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_blip2 import tiny_blip2
from tiny_blip2_training import THINGS, data

from triptych.train.blip2.prompts import blip2_caption_prompt
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.blip2.warm_start import warm_start_qformer
from triptych.train.crops import all_cells
from triptych.train.recipe import make_recipe


class Initials:
    """A tokenizer that knows words by their first letters."""

    def encode(self, text: str, begin: bool = False) -> list[int]:
        return [ord(text.strip()[0])]


@pytest.mark.usefixtures("own_accelerator")
def test_soft_prompts_begin_near_the_words_for_what_a_photo_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.train.words.RATE", 0.01)  # for a model of a few numbers
    initials: Any = Initials()
    blip2 = replace(tiny_blip2(scale=0.3), tokenizer=initials)
    _, photos, features = data(320, "train", 0)
    photos = [replace(photo, captions=(photo.captions[0].split()[1],)) for photo in photos]
    settings = {"stage": 2, "word_epochs": 30, "bert_rate": 1.0, "precision": "fp32", "weight_decay": 1e-4}
    recipe = make_recipe(Blip2Recipe, settings | {"mirror": False, "cells": 1.0, "window": 1.0})
    prompt = blip2_caption_prompt(tiny_blip2())
    warm_start_qformer(tmp_path, blip2, (photos, features), prompt, recipe)
    model = blip2.model
    assert model.lm is not None
    image = model.image_keys_values(all_cells(features, range(40)))
    instruction = prompt.instruction_for(40, torch.device("cpu"))
    soft = model.soft_prompt(model.read_photos(image, instruction).queries).detach()
    named = [i for i in range(40) if THINGS[i % 4] != "horse"]  # a class of few-shot tests
    said = model.lm.embed(torch.tensor([ord(word[0]) for word in ("dog", "cat", "bird")])).detach()
    offset = (soft[named] - said.mean(0)).mean(1)
    likeness = torch.cosine_similarity(offset[:, None], said - said.mean(0), dim=-1)
    assert likeness.argmax(1).tolist() == [(0, None, 1, 2)[i % 4] for i in named]
