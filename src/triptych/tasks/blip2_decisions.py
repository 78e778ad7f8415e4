"""What BLIP-2 decides by matching: which photo shows something, whether a thing is there, whether it is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from triptych.engines.interface import Blip2Spec
from triptych.evidence import join_evidence
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer
from triptych.tasks.asking import Answerer, PictureQuestion, as_choice, as_yes_or_no, deciding_picture
from triptych.tasks.choices import YES_NO, normalised_logprobs
from triptych.tasks.detection import choice_scores, claim_logit, count_logit, detection_logit, gain_of_yes
from triptych.tasks.matching import Blip2Matching
from triptych.text.questions import Claim, Presence, WhichPicture, asks_for_number, is_counted, presence_question


class Blip2Decisions(Answerer[Blip2Spec], Blip2Matching):
    """The part of ``Blip2Tasks`` that answers by matching and contrast."""

    @property
    def answers(self) -> bool:
        """Whether it has a language model."""
        return self.spec.tokenizer is not None

    def weigh_choices(
        self, question: PictureQuestion, forms: Sequence[str], gains: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """By the language model and, about one photo, by the words to expect; they know little about numbers."""
        if len(question.images) > 1 or asks_for_number(question.text):
            return gains
        return choice_scores(gains, self.presence_logits(question.images, forms)[0])

    @property
    def picks_pictures(self) -> bool:
        return self.matches

    def choose_picture(
        self, wanted: WhichPicture, images: Sequence[ImageSource], names: Sequence[str], explain: bool
    ) -> Answer:
        """The photo that matches the text best, by the score that retrieval sorts by; or worst, where it is missing."""
        text, sign = wanted.text, -1 if wanted.missing else 1
        scores = normalised_logprobs([sign * match.rerank for match in self.match(list(images), text)])
        evidence = None
        words, logprobs = tuple(text.split()), (0.0,) * len(text.split())
        if explain:
            each = [self.match_evidence(image, text) for image in images]
            evidence = replace(each[0], maps=np.concatenate([e.maps for e in each], 1))
            words, logprobs = evidence.words, evidence.logprobs
        return as_choice(Answer("", self.name, 0.0, words, logprobs, evidence), names, scores, "matching")

    @property
    def detects(self) -> bool:
        return self.matches and self.answers

    def detect(self, presence: Presence, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """Yes or no, by the photo that decides (``detection``); a number of things is left to the language model."""
        thing, images = presence.thing, question.images
        if is_counted(thing):
            return self.judge_count(question, choices, explain)
        text = f"a photo of {thing}"
        of_each = [PictureQuestion([image], presence_question(thing)) for image in images]
        gains = [gain_of_yes(self.score_forms(each, YES_NO)) for each in of_each]
        cosines = (self.itc_images(images) @ self.itc_texts([text])[0]).max(1).tolist()
        expected = self.presence_logits(images, [thing])[:, 0].tolist()
        logits = [
            detection_logit(gain, cosine, words) for gain, cosine, words in zip(gains, cosines, expected, strict=True)
        ]
        best = deciding_picture(presence, logits)
        answer = self.matched_text(text, images[best] if explain else None)
        evidence = join_evidence([answer.evidence if i == best else None for i in range(len(images))])
        logit = -logits[best] if presence.missing else logits[best]
        return as_yes_or_no(replace(answer, evidence=evidence), choices, logit, "matching")

    def judge(self, claim: Claim, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """Yes or no, by the language model, contrast and the words to expect (``detection``)."""
        affirmative = replace(question, text=claim.question)
        gain = gain_of_yes(self.score_forms(affirmative, YES_NO))
        texts = self.itc_texts([claim.statement, claim.noun])
        statement, noun = (self.itc_images(question.images) @ texts.T).max(1)[0].tolist()
        presence = float(self.presence_logits(question.images, [claim.predicate])[0, 0])
        logit = claim_logit(gain, statement - noun, presence) * (-1 if claim.denied else 1)
        image = question.images[0] if explain else None
        return as_yes_or_no(self.matched_text(claim.statement, image), choices, logit, "matching")

    def judge_count(self, question: PictureQuestion, choices: Sequence[str], explain: bool) -> Answer:
        """Yes or no by the language model, with calibrated probabilities where the question is about one picture."""
        if len(question.images) > 1:
            return self.choose_answer(question, choices, explain)
        scored = self.score_forms(question, YES_NO)
        logit = count_logit(gain_of_yes(scored))
        answer = self.answer_of(scored[0 if logit > 0 else 1], question, explain)
        return as_yes_or_no(answer, choices, logit, "language model")

    def matched_text(self, text: str, image: ImageSource | None) -> Answer:
        """A text that was matched, as the words of an answer; ``image``: where to show what it was matched with; None = no evidence."""
        evidence = None if image is None else self.match_evidence(image, text)
        words = tuple(text.split()) if evidence is None else evidence.words
        return Answer("", self.name, 0.0, words, (0.0,) * len(words), evidence)
