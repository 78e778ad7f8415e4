"""Show, Attend and Tell in use: captions, and where it looked at each word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, overload

import torch
from msgspec import to_builtins
from torch import Tensor

from triptych.evidence import Evidence
from triptych.generate import Hypothesis, Search, generate, stream
from triptych.io.images import ImageSource
from triptych.models import SatModel
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.tasks.answer import Answer
from triptych.tasks.photos import PhotoMemory
from triptych.tasks.writing import changed
from triptych.text.vocabulary import BOS

BATCH = 32  # photos decoded together


class Captioner:
    """Show, Attend and Tell in use. A photo is encoded once for as long as it is remembered (by content)."""

    def __init__(self, sat: SatModel, name: str, device: torch.device) -> None:
        self.name, self.sat, self.device = name, sat, device
        self.model: ShowAttendTell = sat.model.to(device)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder = self.model.encoder
        self.encode = PhotoMemory(encoder.trunk, encoder.image_size, encoder.mean, encoder.std, device)

    @overload
    def caption(self, images: Sequence[ImageSource], *, explain: bool = ..., **settings: Any) -> list[Answer]: ...
    @overload
    def caption(self, images: ImageSource, *, explain: bool = ..., **settings: Any) -> Answer: ...
    def caption(
        self, images: ImageSource | Sequence[ImageSource], *, explain: bool = False, **settings: Any
    ) -> Answer | list[Answer]:
        """Caption one photo, or a list of photos (each answered as if it were alone).

        Args:
            images: a path, URL, data URL, bytes, PIL image or array; or a list of them.
            explain: also return where the model looked at each word (``Answer.evidence``).
            settings: fields of ``generate.Search``: beams, max_new_tokens, length_penalty, n_best, temperature, top_k, top_p, seed.

        Raises:
            InputError: a photo cannot be read, or a setting is out of bounds.
        """
        if not isinstance(images, list | tuple):
            return self.caption([images], explain=explain, **settings)[0]  # type: ignore[list-item]
        search = self.search(**settings)
        answers: list[Answer] = []
        for first in range(0, len(images), BATCH):
            maps = torch.cat([self.encode(image) for image in images[first : first + BATCH]])
            found = generate(self.model, maps, search)
            answers += [self._answer(hypotheses, maps[i : i + 1], explain) for i, hypotheses in enumerate(found)]
        return answers

    def search(self, **settings: Any) -> Search:
        """The model's own way of writing, with ``settings`` changed. Raises InputError for an unknown or impossible one."""
        return changed(self.sat.search, settings)

    def stream(self, image: ImageSource, **settings: Any) -> Iterator[str]:
        """The words of one photo's caption as they are written (greedy, or sampled with a ``temperature``)."""
        for token, _ in stream(self.model, self.encode(image), self.search(**({"beams": 1} | settings))):
            yield self.sat.vocabulary.words[token]

    def _answer(self, hypotheses: Sequence[Hypothesis], maps: Tensor, explain: bool) -> Answer:
        best, vocabulary = hypotheses[0], self.sat.vocabulary
        words = tuple(vocabulary.words[i] for i in best.ids)
        return Answer(
            text=vocabulary.decode(best.ids),
            model=self.name,
            logprob=best.logprob,
            tokens=words,
            logprobs=best.logprobs[: len(words)],
            evidence=self._evidence(best, words, maps) if explain and words else None,
            alternatives=tuple((vocabulary.decode(h.ids), h.logprob) for h in hypotheses[1:]),
        )

    @torch.inference_mode()
    def _evidence(self, hypothesis: Hypothesis, words: tuple[str, ...], maps: Tensor) -> Evidence:
        """The attention over the grid at each word: the decoder's alpha when it reads its own caption again."""
        ids = torch.tensor([[[BOS, *hypothesis.ids[:-1]]]], device=self.device)
        alpha = self.model(maps, ids).alpha[0, 0].float()
        grid = alpha.view(len(words), 1, *self.model.encoder.grid).cpu().numpy()
        return Evidence(words, grid, hypothesis.logprobs[: len(words)])

    def info(self) -> dict[str, Any]:
        """Parts, parameters, memory, licence and figures."""
        encoder = self.model.encoder
        frozen = sum(p.numel() for p in encoder.layers[: encoder.cut].parameters())
        total = sum(p.numel() for p in self.model.parameters())
        return {
            "model": self.name,
            "system": "Show, Attend and Tell",
            "encoder": encoder.name,
            "grid": list(encoder.grid),
            "image_size": encoder.image_size,
            "vocabulary": len(self.sat.vocabulary),
            "parameters_trained": total - frozen,
            "parameters_frozen": frozen,
            "memory_mb": round(sum(p.numel() * p.element_size() for p in self.model.parameters()) / 2**20, 1),
            "config": asdict(self.model.config),
            "search": to_builtins(self.sat.config.search),
            "card": self.sat.config.card.to_dict(),
        }
