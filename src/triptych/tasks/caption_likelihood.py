"""What Flamingo finds likely to be the beginning of a picture's caption: a text that fits is likelier than before a grey picture.

The paper, too, classifies by the likelihood of texts (Alayrac et al. 2022, section 3.4). A small language model is much better at saying
what a picture shows than at answering "left" or "yes".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from triptych.evidence import Floats
from triptych.generate import Hypothesis
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, TextEnd
from triptych.tasks.asking import as_choice, as_yes_or_no, deciding_picture
from triptych.tasks.choices import GREY, normalised_logprobs
from triptych.tasks.detection import caption_claim_logit, caption_detection_logit
from triptych.tasks.flamingo_prompts import FlamingoPrompts
from triptych.tasks.photos import over_photos
from triptych.tasks.words import Spans, mean_over_words, to_answer
from triptych.text.articles import with_article
from triptych.text.questions import Claim, Presence, WhichPicture, is_counted

SHARED_GAIN = 3.0  # nats by which a shared thing must be likelier before each picture than before a grey one
NAMED_THING = re.compile(
    r"\b(an?|the|of) ((?:[\w'-]+ ){0,4}?[\w'-]+)(?= (?:is|are|in|on|with|of|at|by|through|near|over|to|down|while|\w+ing)\b|[.,]|$)"
)
NO_THINGS = frozenset(
    [
        "group",
        "front",
        "back",
        "top",
        "side",
        "middle",
        "pair",
        "couple",
        "number",
        "bunch",
        "air",
        "something",
        "other",
    ]
)


class CaptionLikelihood:
    def __init__(self, prompts: FlamingoPrompts) -> None:
        self.prompts = prompts
        self.caption, self.gap = prompts.spec.prompts.caption, prompts.spec.prompts.gap

    def score(self, texts: Sequence[str], images: Sequence[ImageSource]) -> list[list[Hypothesis]]:
        """Each text as the beginning of each picture's caption: ``[pictures][texts]``."""
        self.prompts.check_length(max(self.prompts.length(f"{self.caption}{self.gap}{text}", 1) for text in texts))
        ids = [self.prompts.spec.tokenizer.encode(f"{self.gap}{text}") for text in texts]
        scored = []
        for row in self.prompts.rows([(self.caption, [image]) for image in images]):
            with self.prompts.prefix.read_prompt(row) as prefix:
                logprobs = self.prompts.engine.score(prefix.logits, prefix.state, ids)
            scored.append([Hypothesis(tuple(i), tuple(p), False) for i, p in zip(ids, logprobs, strict=True)])
        return scored

    def gains(self, texts: Sequence[str], images: Sequence[ImageSource]) -> NDArray[np.float64]:
        """How much likelier than before a grey picture, in nats: ``[pictures, texts]``."""
        *with_photo, blind = np.array([[h.logprob for h in each] for each in self.score(texts, [*images, GREY])])
        return np.stack(with_photo) - blind

    def answer(self, hypothesis: Hypothesis, images: Sequence[ImageSource], explain: bool) -> Answer:
        """A text with its log-probabilities, and where each picture was looked at for its words."""

        def maps(ids: Sequence[int], spans: Spans) -> Floats:
            features = self.prompts.encode(images)
            prompt, engine = self.prompts.ids(self.caption, 1), self.prompts.engine
            over_squares = np.concatenate([engine.maps(prompt, [x], ids) for x in features], 1)
            return over_photos(mean_over_words(over_squares, spans), images, engine.photos.pixels)

        name, tokenizer = self.prompts.name, self.prompts.spec.tokenizer
        answer = to_answer(name, tokenizer, [hypothesis], maps if explain else None, method="caption likelihood")
        return replace(answer, end=TextEnd())

    def choose(
        self, wanted: WhichPicture, images: Sequence[ImageSource], names: Sequence[str], explain: bool
    ) -> Answer:
        """The picture whose caption would sooner begin with the text, or less soon, where it is missing; ``Answer.scores`` by the pictures'
        ``names``."""
        scored = [each[0] for each in self.score([wanted.text], images)]
        scores = normalised_logprobs([-h.logprob if wanted.missing else h.logprob for h in scored])
        answer = self.answer(scored[int(scores.argmax())], images, explain)
        return as_choice(answer, names, scores, "caption likelihood")

    def detect(
        self,
        presence: Presence,
        images: Sequence[ImageSource],
        expected: Sequence[float],
        choices: Sequence[str],
        explain: bool,
    ) -> Answer:
        """Whether a thing is present: how much sooner a picture's caption would begin so than one of a grey picture, and the logit of its
        presence that is ``expected`` of each picture. ``choices``: yes and no, as they were given."""
        thing, counted = presence.thing, is_counted(presence.thing)
        gains = self.gains([thing], images)[:, 0].tolist()
        logits = [caption_detection_logit(gain, words, counted) for gain, words in zip(gains, expected, strict=True)]
        best = deciding_picture(presence, logits)
        (hypothesis,) = self.score([thing], [images[best]])[0]
        answer = self.answer(hypothesis, images, explain)
        return as_yes_or_no(answer, choices, -logits[best] if presence.missing else logits[best], "caption likelihood")

    def judge(self, claim: Claim, image: ImageSource, presence: float, choices: Sequence[str], explain: bool) -> Answer:
        """Whether a claim about a picture is true: how much sooner its caption would begin so than with the noun, and the logit of the
        ``presence`` of what is claimed. ``choices``: yes and no, as they were given."""
        of_claim, of_noun = self.gains([claim.statement, claim.noun], [image])[0].tolist()
        (hypothesis,) = self.score([claim.statement], [image])[0]
        logit = caption_claim_logit(of_claim - of_noun, presence) * (-1 if claim.denied else 1)
        return as_yes_or_no(self.answer(hypothesis, [image], explain), choices, logit, "caption likelihood")

    def shared(
        self, answer: str, captions: Sequence[str], images: Sequence[ImageSource], explain: bool
    ) -> Answer | None:
        """What all pictures show, as ``all show a horse``, where an ``answer`` names nothing that they do; else None.

        It is the thing named in ``captions`` whose least gain over the pictures is the highest. An answer stands if no picture speaks
        against the thing that it names.
        """
        named = things_named(answer)
        if named and (self.gains(named, images).min(0) >= 0).all():
            return None
        things = sorted({thing for caption in captions for thing in things_named(caption)})
        if not things:
            return None
        least = self.gains(things, images).min(0)
        best = int(least.argmax())
        if least[best] < SHARED_GAIN:
            return None
        (hypothesis,) = self.score([things[best]], images[:1])[0]
        return replace(self.answer(hypothesis, images, explain), text=f"all show {things[best]}")


def things_named(caption: str) -> list[str]:
    """``"A black dog runs on a horse."`` -> ``["a dog", "a horse"]``: by articles, without adjectives."""
    things = []
    for match in NAMED_THING.finditer(caption.lower()):
        head = match[2].split()[-1]
        if head not in NO_THINGS:
            things.append(head if match[1] == "of" else with_article(head))
    return things
