"""Recipe of BLIP-2: one objective whose terms the stage switches on.

Stage 1 learns contrast, matching and grounded generation (section 3.1); stage 2 also lets the frozen language model write the captions
(section 3.2); stage 3 also asks questions about one photo and about two, which the Q-Former reads (after InstructBLIP). The later stages
keep contrast and matching on, so that one Q-Former serves all tasks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from triptych.checkpoints.config import Card
from triptych.data import Photo
from triptych.data.english.given import given_questions
from triptych.data.english.kinds import Question
from triptych.data.english.pairs import make_pairs
from triptych.data.english.questions import make_questions
from triptych.errors import InputError
from triptych.evaluate.retrieval import recall
from triptych.generate import Search, generate
from triptych.metrics.captions import score_captions
from triptych.models import Blip2Model, in_bfloat16, itg_search, save_blip2
from triptych.nn import masks
from triptych.nn.decoder import Prompt, TokenContext
from triptych.nn.qformer import ImageKeysValues, QFormerOutput
from triptych.systems.blip2 import Blip2, GroundedText, caption_inputs, instruction
from triptych.systems.blip2_losses import itc_loss, itc_similarity, itg_loss, itm_loss, itm_pairs
from triptych.text.prompt import CAPTION, IGNORED, split_at_images
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import WordPieces
from triptych.train.blip2.batches import (
    PICTURE,
    Batch,
    QuestionRows,
    Rows,
    Texts,
    asked_pairs,
    choose_captions,
    draw_questions,
)
from triptych.train.crops import cells_of, crop_cells
from triptych.train.features import Features
from triptych.train.loop import LoopConfig, fit, uses_bf16
from triptych.train.self_critical import CaptionReward, sample_captions, self_critical_loss
from triptych.train.words import CaptionWords, WordObjective, begin_as_words, learn_words

STAGES = {
    1: {"itc": 1.0, "itm": 1.0, "itg": 1.0},
    2: {"itc": 0.5, "itm": 1.0, "caption": 1.0},
    3: {"itc": 0.5, "itm": 1.0, "caption": 1.0, "question": 1.0, "pair": 1.0},
}

TERMS = ("itc", "itm", "itg", "caption", "scst", "question", "pair")
FIRST_STAGE = frozenset(TERMS[:3])


@dataclass(frozen=True)
class Blip2Recipe:
    """``weights``: of the terms of the loss; None = the stage's. ``cells``: the share of the grid's cells that training looks at, drawn
    anew for each photo and step inside a window of at least ``window`` of the grid's sides. ``bert_rate``: the learning rate of what
    begins as BERT, as a share of the rest's; ``projection_rate``: likewise of the projection, which the frozen language model waits
    for. ``questions``, ``pairs``: of each batch, as shares of its photos. ``easy_negatives``: see ``hard_negatives``. ``itm_photos``,
    ``lm_photos``: the share of a batch's photos that are matched, and that the language model captions: both cost more than contrast.
    ``word_epochs``: of the warm start (``train.words``) before stage 2; 0 = none. ``temperature``, ``bleu_weight``: of the term
    ``scst``, self-critical training of the language model's captions (``train.self_critical``): what it samples from, and the weight of
    the mean of BLEU-1 to 4 beside CIDEr-D in its reward."""

    stage: int = 1
    weights: Mapping[str, float] | None = None
    captions_per_photo: int = 2
    max_pieces: int = 24
    max_tokens: int = 20
    label_smoothing: float = 0.1
    mirror: bool = True
    cells: float = 0.5
    window: float = 0.7
    bert_rate: float = 0.3
    projection_rate: float = 5.0
    questions: float = 0.5
    pairs: float = 0.25
    itm_photos: float = 1.0
    easy_negatives: float = 0.5
    lm_photos: float = 1.0
    word_epochs: int = 4
    temperature: float = 0.5
    bleu_weight: float = 1.0
    validation_photos: int = 500
    validation_captions: int = 200
    beams: int = 3
    length_penalty: float = 1.0
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise InputError(f"stage {self.stage}: BLIP-2 is trained in the stages {', '.join(map(str, STAGES))}")
        if strange := set(self.terms) - set(TERMS):
            raise InputError(f"unknown term {min(strange)!r}: the loss has {', '.join(TERMS)}")
        if self.stage == 1 and not FIRST_STAGE.issuperset(self.terms):
            raise InputError(f"stage 1 has no language model: its terms are {', '.join(sorted(FIRST_STAGE))}")
        if self.terms.get("scst") and self.captions_per_photo < 2:
            raise InputError("samples of a photo are compared with one another: captions_per_photo must be 2 or more")

    @property
    def terms(self) -> Mapping[str, float]:
        return STAGES[self.stage] if self.weights is None else self.weights

    @property
    def questions_alone(self) -> bool:
        """No term needs captions: the photos come with questions and answers."""
        return {name for name, weight in self.terms.items() if weight} == {"question"}


Gather = Callable[[Tensor], Tensor]  # [B, ...] of this process -> [N, ...] of all, with the gradient of its own part


class Blip2Objective(nn.Module):
    """The weighted sum of the terms; ``last`` keeps each for the log."""

    def __init__(
        self,
        model: Blip2,
        recipe: Blip2Recipe,
        words: WordPieces,
        prompt: Sequence[int],
        gather: Gather,
        rank: int = 0,
        reward_fn: CaptionReward | None = None,
    ) -> None:
        """``prompt``: the ids between a photo and its caption; ``gather``, ``rank``: of the processes that train together; ``reward_fn``:
        of sampled captions."""
        super().__init__()
        self.model, self.recipe, self.words, self.gather, self.rank = model, recipe, words, gather, rank
        self.reward_fn = reward_fn
        self.prompt: Tensor
        self.register_buffer("prompt", torch.tensor(prompt, dtype=torch.long), persistent=False)
        self.last: dict[str, float] = {}

    def forward(self, batch: Batch, seed: int) -> Tensor:
        image = self.model.image_keys_values(batch.image_features)
        seen = self.model.read_photos(image)
        losses: dict[str, Tensor] = {}
        reward: dict[str, float] = {}
        if batch.captions is not None:
            losses |= self.first_stage(image, seen, batch, seed)
        told = math.ceil(self.recipe.lm_photos * len(batch.image_ids))
        if batch.lm_captions is not None or self.reward_fn is not None:
            asked = instruction(self.model, self.words, told)
            queries = seen.queries[:told]
            if asked is not None:
                queries = self.model.read_photos(image.select(torch.arange(told)), asked).queries
            soft = self.model.soft_prompt(queries).float()
            if batch.lm_captions is not None:
                losses["caption"] = self.caption_loss(soft, batch.lm_captions)
            if self.reward_fn is not None:
                losses["scst"], reward["reward"] = self.reward_loss(soft, batch.image_ids[:told].tolist(), seed)
        for name, rows in (("question", batch.questions), ("pair", batch.pairs)):
            if rows is not None:
                losses[name] = self.answer_loss(image, rows)
        self.last = {name: loss.item() for name, loss in losses.items()} | reward
        if not losses:
            return torch.zeros((), requires_grad=True)  # of these photos nothing is asked
        return torch.stack([self.recipe.terms[name] * loss for name, loss in losses.items()]).sum()

    def first_stage(self, image: ImageKeysValues, seen: QFormerOutput, batch: Batch, seed: int) -> dict[str, Tensor]:
        """ITC, ITM and ITG, those that have a weight. ``seen``: of ``encode_image``."""
        qformer, heads, terms = self.model.qformer, self.model.heads, self.recipe.terms
        assert heads is not None and batch.captions is not None
        input_ids, text_mask = batch.captions
        photos, k = len(batch.image_ids), len(input_ids) // len(batch.image_ids)
        temperature = heads.temperature.clamp(0.001, 0.5)
        image_features = heads.image_features(seen.queries)
        text_features = heads.text_features(qformer.encode_text(input_ids, text_mask).text)
        all_ids = self.gather(batch.image_ids)
        image_to_text = itc_similarity(image_features, self.gather(text_features)) / temperature  # [P, N * K]
        text_to_image = itc_similarity(self.gather(image_features), text_features).T / temperature  # [P * K, N]
        losses = {}
        if terms.get("itc"):
            losses["itc"] = itc_loss(
                image_to_text.repeat_interleave(k, 0),
                text_to_image.repeat_interleave(k, 1),
                batch.image_ids.repeat_interleave(k),
                all_ids.repeat_interleave(k),
            )
        if terms.get("itm"):  # with the first of each photo's captions
            generator = torch.Generator(input_ids.device).manual_seed(seed)
            similarities = image_to_text[:, ::k], text_to_image[::k]
            image_rows, text_rows = itm_pairs(
                *similarities,
                batch.image_ids,
                all_ids,
                first=self.rank * photos,
                generator=generator,
                easy=self.recipe.easy_negatives,
            )
            judged = math.ceil(self.recipe.itm_photos * photos)  # their negatives come from the whole batch
            image_rows, text_rows = (x.view(3, photos)[:, :judged].flatten() for x in (image_rows, text_rows))
            one_process = len(all_ids) == photos
            pairs = (
                image.select(image_rows)
                if one_process
                else self.model.image_keys_values(self.gather(batch.image_features)[image_rows])
            )
            texts, shown = (self.gather(x[::k])[text_rows] for x in batch.captions)
            losses["itm"] = itm_loss(heads.itm_logits(qformer.encode_both(pairs, texts, shown).queries))
        if terms.get("itg"):
            dec_ids = input_ids.clone()
            dec_ids[:, 0] = self.words.dec
            past = seen.past.reorder(torch.arange(photos, device=input_ids.device).repeat_interleave(k))
            text = qformer.continue_text(dec_ids, past).text
            logits = heads.lm_logits(text, qformer.word_embeddings.weight)
            losses["itg"] = itg_loss(logits, dec_ids, text_mask, self.recipe.label_smoothing)
        return losses

    def caption_loss(self, soft_prompt: Tensor, captions: Tensor) -> Tensor:
        """-log p(caption | photo) of the frozen language model, the mean over words (BLIP-2 section 3.2)."""
        logits = self.caption_logits(soft_prompt, captions)
        # BLIP-2 section 3.2: language modelling loss of the frozen language model behind the soft prompt
        return F.cross_entropy(logits, captions[captions != IGNORED])

    def reward_loss(self, soft_prompt: Tensor, photos: Sequence[int], seed: int) -> tuple[Tensor, float]:
        """Of captions that the frozen language model draws behind the soft prompts of ``photos``: the loss (``train.self_critical``) and
        the mean reward."""
        lm, recipe, reward_fn = self.model.lm, self.recipe, self.reward_fn
        assert lm is not None and reward_fn is not None
        prompt = Prompt(torch.cat([soft_prompt, lm.embed(self.prompt).expand(len(photos), -1, -1)], 1).detach())
        sampling = Search(
            frozenset({reward_fn.end}),
            recipe.max_tokens,
            n_best=recipe.captions_per_photo,
            temperature=recipe.temperature,
        )
        sampled = sample_captions(lm, prompt, reward_fn, photos, sampling, seed)
        labels, reward = (x.to(soft_prompt.device) for x in sampled)
        logits = self.caption_logits(soft_prompt, labels)
        return self_critical_loss(logits, labels, reward, sampling), reward.mean().item()

    def caption_logits(self, soft_prompt: Tensor, captions: Tensor) -> Tensor:
        """``[N, V]``, for the N tokens of all ``captions [P, K, T]`` that are not IGNORED.

        The K captions of a photo share what stands before them: they are branches of one row, packed behind it, so that it is read once
        and padding hardly at all.
        """
        lm = self.model.decoder
        photos, count, length = captions.shape
        begin = lm.embed(self.prompt[:-1]).expand(photos, -1, -1)
        prefix = torch.cat([soft_prompt, begin], 1)
        start = prefix.shape[1]
        padding = captions.flatten(1) == IGNORED
        longest = int((~padding).sum(1).max())
        packed = padding.int().argsort(dim=1, stable=True)[
            :, :longest
        ]  # the captions' tokens in their order, then padding
        shifted = torch.cat([self.prompt[-1:].expand(photos, count, 1), captions[..., :-1].clamp_min(0)], 2)
        x = torch.cat([prefix, lm.embed(shifted.flatten(1).gather(1, packed))], 1)
        before = torch.arange(start, device=x.device).expand(photos, -1)
        x, positions = lm.add_positions(x, torch.cat([before, start + packed % length], 1))
        context = TokenContext(masks.branches(start, packed // length), False, positions)
        for block in lm.blocks:
            x = block(x, context)
        return lm.logits(lm.final_hidden(x[:, start:])[~padding.gather(1, packed)]).float()

    def answer_loss(self, image: ImageKeysValues, rows: Rows) -> Tensor:
        """-log p(answer | photos, question) of the frozen language model, the mean over answers' tokens."""
        return F.cross_entropy(answer_logits(self.model, image, rows), rows.labels[rows.labels != IGNORED])


def answer_logits(model: Blip2, image: ImageKeysValues, rows: Rows) -> Tensor:
    """``[N, V]``: of the frozen language model, for the N tokens of all answers."""
    lm = model.decoder
    question = (rows.question_ids, rows.question_mask) if model.config.instructed else None
    queries = model.read_photos(image.select(rows.photos), question).queries
    soft_prompts = model.soft_prompt(queries).flatten(0, 1).float()  # as the residual stream, also under autocast
    x = lm.embed(rows.input_ids.clamp_min(0))
    x = x.masked_scatter((rows.input_ids == PICTURE)[..., None], soft_prompts)
    return lm.logits(lm(x, rows.token_mask)[rows.labels != IGNORED]).float()


def right_answers(model: Blip2, image: ImageKeysValues, rows: Rows) -> int:
    """How many answers greedy decoding gives word for word: those of which each token is the likeliest."""
    told = rows.labels != IGNORED
    wrong = answer_logits(model, image, rows).argmax(-1) != rows.labels[told]
    return len(rows.labels) - len(set(told.nonzero()[wrong, 0].tolist()))


def retrieval_recall(
    model: Blip2, features: Features, photos: Sequence[Photo], words: WordPieces, recipe: Blip2Recipe, batch: int = 50
) -> dict[str, float]:
    """Recall of contrast alone, without re-ranking, over all captions of the photos."""
    texts = [caption for photo in photos for caption in photo.captions]
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    assert model.heads is not None
    device = model.qformer.query_tokens.device
    shown = []
    for first in range(0, len(photos), batch):
        rows = range(first, min(first + batch, len(photos)))
        image = model.image_keys_values(cells_of(features[rows, [0] * len(rows)]).to(device))
        shown.append(model.heads.image_features(model.read_photos(image).queries))
    ids, text_mask = words.encode(texts, recipe.max_pieces, cut=True)
    told = [
        model.text_features(i.to(device), m.to(device))
        for i, m in zip(torch.split(ids, 4 * batch), torch.split(text_mask, 4 * batch), strict=True)
    ]
    similarity = itc_similarity(torch.cat(shown), torch.cat(told)).float()
    return recall(similarity, similarity, owners)


def generated(
    model: Blip2,
    features: Features,
    photos: int,
    words: WordPieces,
    tokenizer: TextTokenizer | None,
    search: Search,
    batch: int = 25,
) -> list[str]:
    """Captions of the first photos: by the language model, or by the Q-Former itself (ITG) where there is none."""
    texts = []
    device = model.qformer.query_tokens.device
    for first in range(0, photos, batch):
        rows = range(first, min(first + batch, photos))
        image = model.image_keys_values(cells_of(features[rows, [0] * len(rows)]).to(device))
        if tokenizer is None:
            found = generate(GroundedText(model, words.dec), image, itg_search(words, search))
            texts += [words.decode(hypotheses[0].ids) for hypotheses in found]
        else:
            found = generate(model.lm, caption_inputs(model, image, words, tokenizer), search)  # type: ignore[arg-type]
            texts += [tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in found]
    return texts


def asked_of(photos: Sequence[Photo], seed: int) -> list[list[Question]]:
    """The questions that each photo comes with, else those made of its captions."""
    made = make_questions(photos, seed)
    return [given_questions(photo) or own for photo, own in zip(photos, made, strict=True)]


def answered(
    model: Blip2,
    features: Features,
    questions: Sequence[Sequence[Question]],
    as_rows: QuestionRows,
    seed: int,
    batch: int = 25,
) -> float:
    """Percent of questions, one of each photo, that are answered word for word."""
    device = model.qformer.query_tokens.device
    right = asked = 0
    for first in range(0, len(questions), batch):
        rows = range(first, min(first + batch, len(questions)))
        drawn = draw_questions(rows, questions, len(rows), seed)
        if drawn:
            image = model.image_keys_values(cells_of(features[rows, [0] * len(rows)]).to(device))
            right += right_answers(model, image, Rows(*(x.to(device) for x in as_rows(drawn))))
            asked += len(drawn)
    return 100 * right / max(1, asked)


def all_processes(tensor: Tensor) -> Tensor:
    """What every process has, in the order of their ranks; gradients flow to each one's own part."""
    return torch.cat(all_gather(tensor))  # type: ignore[no-untyped-call]


def train(
    run: Path,
    blip2: Blip2Model,
    train_data: tuple[Sequence[Photo], Features],
    val_data: tuple[Sequence[Photo], Features],
    recipe: Blip2Recipe,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train in ``run``; ``run/best`` is the checkpoint that did best on the validation photos.

    Best: CIDEr-D of generated captions where the language model learns to write them; the share of questions answered word for word where
    nothing else is learnt, and the photos need no captions; else the mean of both directions' R@1 without re-ranking. ``notes`` go into
    the checkpoint's card. Returns the record of the best validation.
    """
    photos, features = train_data
    val_photos, val_features = val_data[0][: recipe.validation_photos], val_data[1]
    alone = recipe.questions_alone
    for photo in (*photos, *val_photos):
        if not photo.captions and not alone:
            raise InputError(
                f"{photo.name} has no captions: remove it from the data, give it some, or learn its questions alone (weight question=1)"
            )
    model, words, tokenizer = blip2.model, blip2.words, blip2.tokenizer
    captioned = [] if alone else photos
    texts = Texts(captioned, words, tokenizer, recipe.max_pieces, recipe.max_tokens)
    counts = [len(photo.captions) for photo in photos]
    grid, terms = model.vision_encoder.grid, recipe.terms
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    several, together = processes > 1, min(len(photos), recipe.loop.batch_size)
    if together % processes:
        raise InputError(f"{together} photos a step are not the same number for each of {processes} processes")
    objective = Blip2Objective(
        model,
        recipe,
        words,
        tokenizer.encode(split_at_images(CAPTION, 1)[1]) if tokenizer else (),
        all_processes if several else lambda tensor: tensor,
        torch.distributed.get_rank() if several else 0,
        CaptionReward(photos, tokenizer, recipe.bleu_weight) if terms.get("scst") and tokenizer else None,
    )

    as_rows = None
    if terms.get("question") and tokenizer is not None:
        as_rows = QuestionRows(words, tokenizer, model.config.qformer.queries)
        questions, val_questions = (asked_of(items, recipe.loop.seed) for items in (photos, val_photos))

    def cells(rows: Sequence[int], seed: int) -> Tensor:
        mirrored = torch.randint(2 if recipe.mirror else 1, (len(rows),), generator=torch.Generator().manual_seed(seed))
        maps = cells_of(features[rows, mirrored.tolist()])
        return crop_cells(maps, grid, recipe.cells, recipe.window, seed)

    def batch(rows: Sequence[int], seed: int) -> tuple[Batch, int]:
        told = math.ceil(recipe.lm_photos * len(rows))
        choice = choose_captions([counts[row] for row in rows], recipe.captions_per_photo, seed) if captioned else []
        first_stage = any(terms.get(name) for name in FIRST_STAGE)
        return Batch(
            cells(rows, seed),
            torch.tensor(rows),
            texts.captions(rows, choice, recipe.max_pieces if several else None) if first_stage else None,
            texts.lm_captions(rows[:told], choice[:told]) if terms.get("caption") else None,
            *question_rows(rows, seed),
        ), seed

    def question_rows(rows: Sequence[int], seed: int) -> tuple[Rows | None, Rows | None]:
        if as_rows is None:
            return None, None
        asked = draw_questions(rows, questions, round(recipe.questions * len(rows)), seed)
        count = round(recipe.pairs * len(rows)) if terms.get("pair") else 0
        pairs = make_pairs([photos[row] for row in rows], count, seed)
        return as_rows(asked) if asked else None, as_rows(asked_pairs(pairs)) if pairs else None

    def validate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        judged = val_photos[: recipe.validation_captions]
        with torch.inference_mode(), torch.autocast(model.qformer.query_tokens.device.type, torch.bfloat16, bf16):
            if as_rows is not None:
                metrics["accuracy"] = answered(model, val_features, val_questions, as_rows, recipe.loop.seed)
            if alone:
                return metrics
            metrics |= retrieval_recall(model, val_features, val_photos, words, recipe)
            captions = generated(model, val_features, len(judged), words, tokenizer if told_by_lm else None, search)
        references = {photo.id: photo.captions for photo in judged}
        scores = score_captions(dict(zip(references, captions, strict=True)), references, meteor=False)
        metrics |= {name: scores[name] or 0.0 for name in ("BLEU-1", "BLEU-4", "CIDEr-D")}
        return metrics | {"R@1": (metrics["text-to-image R@1"] + metrics["image-to-text R@1"]) / 2}

    def save_best(record: dict[str, Any]) -> None:
        card = Card(recipe=asdict(recipe), validation=record, photos=len(photos), **(notes or {}))
        save_blip2(run / "best", replace(blip2, search=search), card)

    told_by_lm = bool(terms.get("caption") or terms.get("scst"))
    if told_by_lm:
        model.config = replace(model.config, writer="lm")
    search = replace(blip2.search, beams=recipe.beams, length_penalty=recipe.length_penalty)
    bf16 = uses_bf16(recipe.loop)
    data = hashlib.sha256(repr([(p.id, p.captions) for p in (*photos, *val_photos)]).encode()).hexdigest()
    identity = {"recipe": asdict(recipe), "model": asdict(model.config), "data": data}
    run.mkdir(parents=True, exist_ok=True)
    if recipe.stage == 2 and recipe.word_epochs and not (run / "state.pt").exists():
        words_first(run / "words", blip2, photos, cells, recipe)
    if bf16 and model.lm is not None:
        in_bfloat16(model.decoder, blip2.config.lm)
    metric = "accuracy" if alone else "CIDEr-D" if told_by_lm else "R@1"
    groups = parameter_groups(model, recipe)
    return fit(run, objective, groups, len(photos), batch, validate, save_best, recipe.loop, identity, metric)


def words_first(
    run: Path,
    blip2: Blip2Model,
    photos: Sequence[Photo],
    cells: Callable[[Sequence[int], int], Tensor],
    recipe: Blip2Recipe,
) -> None:
    """The warm start of stage 2: the Q-Former learns words, then the projection begins as what said them."""
    model, tokenizer = blip2.model, blip2.tokenizer
    assert model.lm is not None and model.projection is not None and tokenizer is not None
    device = model.qformer.query_tokens.device
    words = CaptionWords(photos, tokenizer)
    if not len(words.ids):
        return  # no word tells some of the pictures from the others
    embeddings = model.lm.embed(words.ids.to(device)).float()

    def see(image_features: Tensor) -> Tensor:
        asked = instruction(model, blip2.words, len(image_features))
        return model.read_photos(model.image_keys_values(image_features), asked).queries

    trained = nn.ModuleList([model.vision_norm, model.qformer])
    objective = WordObjective(trained, see, model.config.qformer.dim, embeddings, words).to(device)
    loop = replace(recipe.loop, epochs=recipe.word_epochs)
    learn_words(run, objective, words, cells, loop, {"model": asdict(model.config)}, recipe.bert_rate)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, uses_bf16(recipe.loop)):
        queries = see(cells(range(min(64, len(photos))), 0).to(device)).float()
    begin_as_words(model.projection, objective.head.weight.detach(), queries, embeddings)


def parameter_groups(model: Blip2, recipe: Blip2Recipe) -> list[dict[str, Any]]:
    """What begins as BERT at its own rate; the word embeddings stay as they are, so that words which no caption has keep their place
    among the others (a deviation from the paper, which trains them on 129 million photos)."""
    model.qformer.word_embeddings.requires_grad_(False)
    bert = ("self_attention.", "text_mlp.", "position_embeddings.", "qformer.norm.")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in named if any(part in name for part in bert)]
    last = [p for name, p in named if name.startswith("projection.")]
    rest = [p for name, p in named if not name.startswith("projection.") and not any(part in name for part in bert)]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": slow, "lr_scale": recipe.bert_rate}]
    return [*groups, {"params": last, "lr_scale": recipe.projection_rate}] if last else groups
