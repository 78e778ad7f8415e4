"""The validation figures of BLIP-2's training, from cached features: retrieval, captions, answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triptych.data import Photo
from triptych.data.english.kinds import Question
from triptych.evaluate.retrieval import recall
from triptych.evidence import Floats
from triptych.generate import Guidance, Search, generate
from triptych.logits import to_numpy
from triptych.models import Blip2Model
from triptych.systems.blip2 import Blip2, GroundedText
from triptych.systems.blip2_losses import itc_similarity
from triptych.text.wordpiece import itg_search
from triptych.train.blip2.answers import right_answers
from triptych.train.blip2.batches import AnswerRows, QuestionEncoder, draw_questions
from triptych.train.blip2.prompts import CaptionPrompt
from triptych.train.crops import all_cells
from triptych.train.features import Features

PHOTOS, CAPTIONS, QUESTIONS = 50, 25, 25  # of one pass


def retrieval_recall(
    blip2: Blip2Model, features: Features, photos: Sequence[Photo], max_pieces: int, agreement: Floats | float = 0.0
) -> dict[str, float]:
    """Recall of contrast, without re-ranking, over all K captions of the P photos. ``agreement [P, K]`` is added to the cosine."""
    model = blip2.model
    assert model.heads is not None
    device = model.qformer.query_tokens.device
    image_features = []
    for first in range(0, len(photos), PHOTOS):
        rows = range(first, min(first + PHOTOS, len(photos)))
        image = model.image_keys_values(all_cells(features, rows).to(device))
        image_features.append(model.heads.image_features(model.read_photos(image).queries))
    texts = [caption for photo in photos for caption in photo.captions]
    ids, text_mask = blip2.words.encode(texts, max_pieces, cut=True)
    parts = zip(torch.split(ids, 4 * PHOTOS), torch.split(text_mask, 4 * PHOTOS), strict=True)
    text_features = [model.text_features(i.to(device), mask.to(device)) for i, mask in parts]
    cosine = itc_similarity(torch.cat(image_features), torch.cat(text_features))
    similarity = to_numpy(cosine) + agreement
    owners = [i for i, photo in enumerate(photos) for _ in photo.captions]
    return recall(similarity, similarity, owners)


def write_blip2_captions(
    blip2: Blip2Model,
    features: Features,
    photos: int,
    search: Search,
    prompt: CaptionPrompt | None,
    guidance: Guidance | None = None,
) -> list[str]:
    """Captions of the first photos: by the language model behind ``prompt``, perhaps with ``guidance`` of these photos, or by the Q-Former
    itself (ITG) where it is None."""
    model, words, tokenizer = blip2.model, blip2.words, blip2.tokenizer
    texts = []
    device = model.qformer.query_tokens.device
    for first in range(0, photos, CAPTIONS):
        rows = range(first, min(first + CAPTIONS, photos))
        image = model.image_keys_values(all_cells(features, rows).to(device))
        if prompt is None:
            beams = generate(GroundedText(model, words.dec), image, itg_search(words, search))
            texts += [words.decode(hypotheses[0].ids) for hypotheses in beams]
            continue
        assert model.lm is not None and tokenizer is not None
        soft_prompts = model.soft_prompt(model.read_photos(image, prompt.instruction_for(len(rows), device)).queries)
        before, after = (torch.tensor(ids, dtype=torch.long, device=device) for ids in (prompt.before, prompt.after))
        inputs = model.prompt([[before, photo, after] for photo in soft_prompts])
        own = guidance and guidance._replace(weights=guidance.weights[list(rows)])
        prompts = [[*prompt.before, *prompt.after]] * len(rows)
        beams = generate(model.lm, inputs, search, guidance=own, prompts=prompts)
        texts += [tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in beams]
    return texts


def answer_accuracy(
    model: Blip2, features: Features, questions: Sequence[Sequence[Question]], encode: QuestionEncoder, seed: int
) -> float:
    """Percent of questions, one of each photo, that are answered word for word."""
    device = model.qformer.query_tokens.device
    right = count = 0
    for first in range(0, len(questions), QUESTIONS):
        rows = range(first, min(first + QUESTIONS, len(questions)))
        drawn = draw_questions(rows, questions, len(rows), seed)
        if drawn:
            image = model.image_keys_values(all_cells(features, rows).to(device))
            right += right_answers(model, image, AnswerRows(*(x.to(device) for x in encode(drawn))))
            count += len(drawn)
    return 100 * right / max(1, count)
