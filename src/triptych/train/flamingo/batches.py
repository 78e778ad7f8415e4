"""The batches of Flamingo's training: sequences of pictures and text as ids, and the features of their pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.data.interleaved import Interleaved, PicturePart, Sequences, TextPart, answer_part
from triptych.errors import InputError
from triptych.text.prompt import IGNORED
from triptych.text.tokenizer import TextTokenizer
from triptych.train.flamingo.recipe import REWARDED

BATCH_TRIES = 200  # tasks drawn for one sequence


class SequenceIds(NamedTuple):
    """One sequence. ``labels``: the next token after each; ``pictures``: their numbers among all pictures. A photo that the model captions
    itself is a sequence of its picture alone."""

    input_ids: list[int]
    labels: list[int]
    pictures: list[int]


class FlamingoItems(NamedTuple):
    """A batch: the features of P pictures, and B sequences that hold them."""

    image_features: Tensor  # [P, L, Dv]
    counts: Tensor  # [B] pictures of each row
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T] the next token after each; IGNORED where it does not count
    tasks: Tensor  # [B] the number of each row's task
    photos: Tensor  # [B] the photo that each row was made for
    seed: int  # for sampling


class SequenceEncoder:
    """Turns sequences into ids. A text longer than ``max_tokens`` is cut after its last whole example."""

    def __init__(self, tokenizer: TextTokenizer, image_id: int, max_tokens: int) -> None:
        self.tokenizer, self.image_id, self.max_tokens = tokenizer, image_id, max_tokens
        self.end = min(tokenizer.eos_ids)

    def scored(self, prompt: Interleaved, answer: str) -> SequenceIds:
        """A prompt and an answer; only the answer is a label, and nothing is cut."""
        question = [part._replace(is_label=False) if isinstance(part, TextPart) else part for part in prompt]
        return SequenceEncoder(self.tokenizer, self.image_id, 1 << 30)([*question, answer_part(answer)])

    def __call__(self, parts: Interleaved) -> SequenceIds:
        ids = self.tokenizer.encode("", begin=True)
        is_label = [False] * len(ids)
        pictures: list[int] = []
        whole = (0, 0)  # tokens and pictures up to the last example that fits
        for part in parts:
            if isinstance(part, PicturePart):
                ids.append(self.image_id)
                is_label.append(False)
                pictures.append(part.picture)
            else:
                text = self.tokenizer.encode(part.text) + [self.end] * part.ends_example
                ids += text
                is_label += [part.is_label] * len(text)
                if part.ends_example and len(ids) <= self.max_tokens:
                    whole = len(ids), len(pictures)
        ids, is_label = ids[: whole[0]], is_label[: whole[0]]
        labels = [i if label else IGNORED for i, label in zip(ids, is_label, strict=True)]
        return SequenceIds(ids, [*labels[1:], IGNORED], pictures[: whole[1]])


def padded(rows: Sequence[SequenceIds], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and labels ``[B, T]``, padded at the end, and the pictures' counts ``[B]``."""
    width = max(len(row.input_ids) for row in rows)
    ids = [row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows]
    labels = [row.labels + [IGNORED] * (width - len(row.labels)) for row in rows]
    counts = [len(row.pictures) for row in rows]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(labels, dtype=torch.long), torch.tensor(counts)


class TaskMixture:
    """Draws a sequence for each photo of a step, of a task drawn by ``shares``."""

    def __init__(self, sequences: Sequences, encode: SequenceEncoder, shares: Mapping[str, float]) -> None:
        self.sequences, self.encode = sequences, encode
        self.tasks = [name for name, share in shares.items() if share > 0]
        self.shares = [shares[name] for name in self.tasks]

    def __call__(self, photos: Sequence[int], seed: int) -> tuple[list[SequenceIds], list[int]]:
        """A sequence for each of ``photos``, and the index of its task in ``tasks``."""
        drawn = [self.draw(photo, random.Random(f"{seed} {photo}")) for photo in photos]
        return [ids for ids, _ in drawn], [task for _, task in drawn]

    def draw(self, photo: int, rng: random.Random) -> tuple[SequenceIds, int]:
        """Raises InputError: no task has a sequence with a label for this photo."""
        for _ in range(BATCH_TRIES):  # some tasks have no sequence for some photos
            (task,) = rng.choices(range(len(self.tasks)), self.shares)
            if self.tasks[task] == REWARDED:
                return SequenceIds([], [], [photo]), task
            ids = self.encode(self.sequences.makers[self.tasks[task]](rng, photo))
            if any(label != IGNORED for label in ids.labels):
                return ids, task
        raise InputError(
            f"these captions suit none of the tasks {', '.join(self.tasks)}: draw other tasks, too (--share)"
        )
