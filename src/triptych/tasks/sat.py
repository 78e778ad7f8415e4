"""The tasks of Show, Attend and Tell: captions, and where the model looked at each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

from triptych.engines.interface import Array, SatEngine
from triptych.evidence import Evidence, Floats
from triptych.generate import Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource
from triptych.tasks.answer import Answer, AnswerRecipe
from triptych.tasks.asking import with_settings
from triptych.tasks.photos import DECODED_TOGETHER, PhotoMemory
from triptych.tasks.reranking import Reranking, default_beams, with_all_beams
from triptych.tasks.words import Pieces, Spelling, changed_pieces, pieces_of_tokens, text_end
from triptych.text.vocabulary import SPECIALS, spaced


class SatTasks(Reranking):
    """A Show, Attend and Tell model. Features of photos are remembered by content."""

    def __init__(self, engine: SatEngine[Any], name: str) -> None:
        self.engine, self.name, self.spec = engine, name, engine.spec
        self.encode = PhotoMemory(engine)

    @property
    def explains(self) -> bool:
        """Whether ``explain`` works on this engine; some models need torch for it."""
        return self.engine.explains

    @overload
    def caption(
        self, images: Sequence[ImageSource], *, explain: bool = ..., rerank: bool = ..., **settings: Any
    ) -> list[Answer]: ...
    @overload
    def caption(self, images: ImageSource, *, explain: bool = ..., rerank: bool = ..., **settings: Any) -> Answer: ...
    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        explain: bool = False,
        rerank: bool = True,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Caption one photo or a list of photos; a batch gives the same captions as single photos.

        Args:
            images: a path, URL, data URL, bytes, PIL image or array; or a list of them.
            explain: also return where the model looked at each word (``Answer.evidence``).
            rerank: choose among the beams by consensus (``tasks.reranking``) if the checkpoint has one.
            settings: fields of ``generate.Search``: beams, max_new_tokens, length_penalty, n_best, temperature, top_k, top_p, seed.

        Raises:
            InputError: a photo cannot be read, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            return self.caption([images], explain=explain, rerank=rerank, **settings)[0]  # type: ignore[list-item]
        choice = self.caption_choice(settings) if rerank else None
        search = self.search(**default_beams(choice) | settings)
        answers: list[Answer] = []
        for first in range(0, len(images), DECODED_TOGETHER):
            features = self.encode(images[first : first + DECODED_TOGETHER])
            annotations = self.engine.read(features)
            if choice is not None:
                pooled = self.engine.mean(annotations)
                guidance = self.guidance(pooled, choice)
                written = generate(self.engine, annotations, with_all_beams(search), guidance=guidance)
                written = self.reranked(written, pooled, self.spec.vocabulary.decode, search.n_best, choice)
            else:
                written = generate(self.engine, annotations, search)
            recipe = AnswerRecipe(self.engine.photos.pixels, search=search)
            part = [
                replace(self._answer(h, photo, explain), recipe=recipe)
                for h, photo in zip(written, features, strict=True)
            ]
            answers += map(self.with_expected_words, part, pooled) if choice is not None else part
        return answers

    def search(self, **settings: Any) -> Search:
        """The model's own search with some settings changed. Raises InputError: an unknown or impossible one."""
        return with_settings(self.spec.search, settings)

    def stream(self, image: ImageSource, **settings: Any) -> Pieces:
        """One photo's caption word by word as it is written (greedy, or sampled with a ``temperature``)."""
        search = self.search(**({"beams": 1} | settings))
        features = self.encode([image])
        annotations = self.engine.read(features)
        guidance = self.guidance(self.engine.mean(annotations)) if self.reranks(settings) else None
        tokens = stream(self.engine, annotations, search, guidance)
        words = pieces_of_tokens(tokens, self.spec.vocabulary.words.__getitem__, self.spelling)
        return (yield from changed_pieces(words, lambda words: spaced(self.spec.vocabulary.correct_articles(words))))

    @property
    def spelling(self) -> Spelling:
        vocabulary = self.spec.vocabulary
        return Spelling(vocabulary.join, dict(enumerate(SPECIALS)))

    def _answer(self, hypotheses: Sequence[Hypothesis], features: Array, explain: bool) -> Answer:
        best, vocabulary = hypotheses[0], self.spec.vocabulary
        words = tuple(vocabulary.correct_articles(vocabulary.words[i] for i in best.ids))
        logprobs = best.logprobs[: len(words)]
        evidence = None
        if explain and words:
            evidence = Evidence(words, self.engine.maps(features, best.ids)[:, None], logprobs)
        return Answer(
            text=vocabulary.decode(best.ids),
            model=self.name,
            logprob=best.logprob,
            tokens=words,
            logprobs=logprobs,
            evidence=evidence,
            alternatives=tuple((vocabulary.decode(h.ids), h.logprob) for h in hypotheses[1:]),
            method="decoder",
            end=text_end(hypotheses, self.spelling),
            finished_alternatives=tuple(h.finished for h in hypotheses[1:]),
        )

    def word_token(self, word: str) -> int | None:
        return self.spec.vocabulary.word_token(word)

    def pooled(self, images: Sequence[ImageSource]) -> Floats:
        """The mean of each photo's annotations over the grid: ``[B, D]``."""
        return self.engine.pooled(self.encode(images))

    def info(self) -> dict[str, Any]:
        """Parts, parameters, memory, licence and figures, for ``triptych info``."""
        return {"model": self.name, **self.engine.info()}
