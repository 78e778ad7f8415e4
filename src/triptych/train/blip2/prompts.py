"""The checkpoint's prompts as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.models import Blip2Model
from triptych.text.prompt import CAPTION_INSTRUCTION, Prompts, qformer_texts, split_at_images
from triptych.text.tokenizer import TextTokenizer


class CaptionPrompt(NamedTuple):
    """What stands around a photo that is captioned: ``before``, ``after``: ids of the language model. ``instruction``: what the Q-Former
    reads, ids and mask ``[1, T]``; None = nothing."""

    before: Sequence[int] = ()
    after: Sequence[int] = ()
    instruction: tuple[Tensor, Tensor] | None = None

    def instruction_for(self, photos: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The instruction for B photos, ids and mask ``[B, T]``."""
        if self.instruction is None:
            return None
        ids, mask = (x.to(device).expand(photos, -1) for x in self.instruction)
        return ids, mask


def blip2_caption_prompt(blip2: Blip2Model) -> CaptionPrompt:
    """The prompt of a caption. Raises InputError: no text stands between the photo and the caption, which the first word would follow."""
    prompts, tokenizer = blip2.prompts, blip2.tokenizer
    if tokenizer is None:
        return CaptionPrompt()
    before, after = prompt_ids(tokenizer, prompts, prompts.caption, 1)
    if not after:
        raise InputError(f"the prompt {prompts.caption!r} ends with the photo: training needs a text behind it")
    instruction = None
    if blip2.model.config.instructed:
        read = instructions(prompts, prompts.caption, CAPTION_INSTRUCTION, 1)
        ids, mask = blip2.words.encode(read)
        instruction = ids, mask
    return CaptionPrompt(before, after, instruction)


def prompt_ids(tokenizer: TextTokenizer, prompts: Prompts, prompt: str, photos: int) -> list[list[int]]:
    """The texts before, between and after the photos as ids. Published models expect the begin token behind their photos."""
    texts = split_at_images(prompt, photos)
    begins = next((i for i, text in enumerate(texts) if text), photos) if prompts.published else None
    return [tokenizer.encode(text, begin=i == begins) for i, text in enumerate(texts)]


def instructions(prompts: Prompts, prompt: str, question: str, photos: int) -> list[str]:
    """What a Q-Former that reads questions reads with each photo: the question, or the whole prompt (InstructBLIP)."""
    return qformer_texts(prompt, 1) * photos if prompts.whole else qformer_texts(question, photos)
