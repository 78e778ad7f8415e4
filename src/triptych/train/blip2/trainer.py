"""The trainer of BLIP-2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.data import Photo
from triptych.data.english.given import given_questions
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import make_pairs
from triptych.data.english.questions import make_questions
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.models import Blip2Model, in_bfloat16, save_blip2
from triptych.systems.blip2 import Blip2
from triptych.train.blip2.agreement import expected_captions, training_agreement, validation_agreement
from triptych.train.blip2.batches import (
    AnswerRows,
    Blip2Items,
    CaptionTexts,
    QuestionEncoder,
    WordGuidance,
    choose_captions,
    draw_questions,
    pair_questions,
)
from triptych.train.blip2.objective import Blip2Objective, Processes
from triptych.train.blip2.prompts import blip2_caption_prompt
from triptych.train.blip2.recipe import FIRST_STAGE, Blip2Recipe
from triptych.train.blip2.validation import answer_accuracy, retrieval_recall, write_blip2_captions
from triptych.train.blip2.warm_start import warm_start_qformer
from triptych.train.crops import draw_cells
from triptych.train.cross_fitting import ExpectedCaptions, ExpectedWords
from triptych.train.data import PhotoSet, TrainingData, caption_figures, validate_each
from triptych.train.loop import uses_bf16
from triptych.train.self_critical import CaptionReward
from triptych.train.trainer import ParameterGroups

BERT_PART = ("self_attention.", "text_mlp.", "position_embeddings.", "qformer.norm.")  # parameters that begin as BERT's


class Blip2Trainer:
    """A ``train.trainer.Trainer``. The best state has the highest CIDEr-D of generated captions where the language model learns to write
    them; the highest share of questions answered word for word where nothing else is learnt, and the photos need no captions; else the
    highest mean of both directions' R@1 without re-ranking.

    expected: what consensuses of other photos expect of captions; expected_words: of the language model's tokens. None = nothing."""

    expected: ExpectedCaptions | None = None
    expected_words: ExpectedWords | None = None

    def __init__(self, blip2: Blip2Model, data: TrainingData, recipe: Blip2Recipe) -> None:
        """Raises InputError: a photo has no captions, or the processes cannot share a batch evenly."""
        self.data, self.recipe, self.mix = data, recipe, data.mix
        self.photos, self.features = data.photos, data.features
        if not recipe.questions_only:
            data.check_captions(", or learn its questions alone (weight question=1)")
        model = blip2.model
        if recipe.lm_writes:
            model.config = replace(model.config, writer="lm")
        validation = recipe.validation
        search = replace(blip2.search, beams=validation.beams, length_penalty=validation.length_penalty)
        self.blip2 = replace(blip2, search=search)
        self.metric = "accuracy" if recipe.questions_only else "CIDEr-D" if recipe.lm_writes else "R@1"
        self.processes = Processes.running()
        together = min(len(self.photos), recipe.loop.batch_size)
        if together % self.processes.count:
            raise InputError(
                f"{together} photos a step are not the same number for each of {self.processes.count} processes"
            )
        self.prompt = blip2_caption_prompt(blip2)
        self.texts = CaptionTexts(
            [] if recipe.questions_only else self.photos,
            blip2.words,
            blip2.tokenizer,
            recipe.batch.max_pieces,
            recipe.batch.max_tokens,
        )
        self.encode_questions: QuestionEncoder | None = None
        self.questions: list[list[Question]] = []
        if recipe.terms.get("question") and blip2.tokenizer is not None:
            queries = model.config.qformer.queries
            self.encode_questions = QuestionEncoder(blip2.words, blip2.tokenizer, queries, blip2.prompts)
            self.questions = questions_of(self.photos, recipe.loop.seed)
        self.objective = self.make_objective()

    def make_objective(self) -> Blip2Objective:
        recipe, tokenizer = self.recipe, self.blip2.tokenizer
        reward_fn = None
        if recipe.terms.get("scst") and tokenizer is not None:
            reward_fn = CaptionReward(self.photos, tokenizer, recipe.reward.bleu_weight)
        words = self.blip2.words
        return Blip2Objective(self.blip2.model, recipe, words.dec, self.prompt, self.processes, reward_fn)

    def identity(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "model": asdict(self.blip2.model.config),
            "data": self.data.fingerprint(),
            "shares": self.mix.shares,
        }

    def prepare(self, run: Path, new: bool) -> None:
        """The warm start of stage 2; what contrast need not learn; and the frozen language model in bfloat16 where autocast would
        convert it at every step."""
        model, recipe = self.blip2.model, self.recipe
        if new and recipe.stage == 2 and recipe.rates.word_epochs:
            warm_start_qformer(run / "words", self.blip2, (self.photos, self.features), self.prompt, recipe)
        if recipe.rates.agreement or recipe.rates.guidance:
            self.expected = expected_captions(self.blip2, self.data)
        if recipe.rates.guidance and self.expected is not None and self.blip2.tokenizer is not None:
            weight = recipe.rates.guidance
            self.expected_words = ExpectedWords(self.expected, self.blip2.tokenizer.word_token, weight)
        if uses_bf16(recipe.loop) and model.lm is not None:
            in_bfloat16(model.network, self.blip2.config.lm)

    def parameter_groups(self) -> ParameterGroups:
        return blip2_parameter_groups(self.blip2.model, self.recipe)

    def batch(self, rows: Sequence[int], seed: int) -> tuple[Blip2Items, int]:
        recipe, terms = self.recipe, self.recipe.terms
        captioned = math.ceil(recipe.batch.lm_photos * len(rows))
        choice: list[list[int]] = []
        lm_choice: list[list[int]] = []
        if not recipe.questions_only:
            counts = [len(self.photos[row].captions) for row in rows]
            choice = choose_captions(counts, recipe.batch.captions_per_photo, seed)
            counts = [len(self.photos[row].captions) + len(self.photos[row].written) for row in rows[:captioned]]
            lm_choice = choose_captions(counts, recipe.batch.captions_per_photo, seed)
        first_stage = any(terms.get(name) for name in FIRST_STAGE)
        agreement = None
        if self.recipe.rates.agreement and self.expected is not None:
            chosen = [self.photos[row].captions[k] for row, ks in zip(rows, choice, strict=True) for k in ks]
            agreement = training_agreement(self.expected, rows, chosen)
        guidance = None
        if self.expected_words is not None:
            tokens, weights = self.expected_words.of_training_photos(rows[:captioned])
            guidance = WordGuidance(torch.from_numpy(tokens), torch.from_numpy(weights))
        items = Blip2Items(
            draw_cells(self.features, rows, self.blip2.model.vision_encoder.grid, recipe.batch.crops, seed),
            torch.tensor(rows),
            self.texts.captions(rows, choice, full_width=self.processes.count > 1) if first_stage else None,
            self.texts.lm_captions(rows[:captioned], lm_choice) if terms.get("caption") else None,
            *self.question_rows(rows, seed),
            agreement,
            guidance,
        )
        return items, seed

    def question_rows(self, rows: Sequence[int], seed: int) -> tuple[AnswerRows | None, AnswerRows | None]:
        """Questions about single photos of the batch, and about two of them."""
        encode, shares = self.encode_questions, self.recipe.batch
        if encode is None:
            return None, None
        drawn = draw_questions(rows, self.questions, round(shares.questions * len(rows)), seed)
        count = round(shares.pairs * len(rows)) if self.recipe.terms.get("pair") else 0
        pairs = make_pairs([self.photos[row] for row in rows], count, seed)
        return encode(drawn) if drawn else None, encode(pair_questions(pairs)) if pairs else None

    def validate(self) -> dict[str, float]:
        device = self.blip2.model.qformer.query_tokens.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, uses_bf16(self.recipe.loop)):
            return validate_each(self.data.validation, self.figures)

    def figures(self, data: PhotoSet) -> dict[str, float]:
        recipe, seed = self.recipe, self.recipe.loop.seed
        photos = data.photos[: recipe.validation.validation_photos]
        figures: dict[str, float] = {}
        if self.encode_questions is not None:
            questions = questions_of(photos, seed)
            model = self.blip2.model
            figures["accuracy"] = answer_accuracy(model, data.features, questions, self.encode_questions, seed)
        if recipe.questions_only:
            return figures
        if self.blip2.model.heads is not None:
            agreement: Floats | float = 0.0
            if recipe.rates.agreement and self.expected is not None:
                agreement = recipe.rates.agreement * validation_agreement(self.expected, data, len(photos))
            figures |= retrieval_recall(self.blip2, data.features, photos, recipe.batch.max_pieces, agreement)
            figures["R@1"] = (figures["text-to-image R@1"] + figures["image-to-text R@1"]) / 2
        judged = photos[: recipe.validation.validation_captions]
        prompt = self.prompt if recipe.lm_writes else None
        guidance = None
        if self.expected_words is not None:
            guidance = self.expected_words.of_validation_photos(data, len(judged))
        captions = write_blip2_captions(self.blip2, data.features, len(judged), self.blip2.search, prompt, guidance)
        return figures | caption_figures(judged, captions)

    def save(self, directory: Path, record: Mapping[str, Any]) -> None:
        card = self.data.card(self.recipe, record)
        save_blip2(directory, self.blip2, card)


def questions_of(photos: Sequence[Photo], seed: int) -> list[list[Question]]:
    """The questions that each photo comes with, else those made of its captions."""
    made = make_questions(photos, seed)
    return [given_questions(photo) or own for photo, own in zip(photos, made, strict=True)]


def blip2_parameter_groups(model: Blip2, recipe: Blip2Recipe) -> ParameterGroups:
    """What starts as BERT and the projection have learning rates of their own. The word embeddings stay as they are, so that words
    in no caption keep their place among the others (a deviation from the paper, which trains them on 129 million photos)."""
    if model.config.qformer.vocab_size:
        model.qformer.word_embeddings.requires_grad_(False)
    bert: list[nn.Parameter] = []
    projection: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in BERT_PART):
            bert.append(parameter)
        elif name.startswith("projection."):
            projection.append(parameter)
        else:
            rest.append(parameter)
    groups: ParameterGroups = [{"params": rest}, {"params": bert, "lr_scale": recipe.rates.bert_rate}]
    return [*groups, {"params": projection, "lr_scale": recipe.rates.projection_rate}] if projection else groups
