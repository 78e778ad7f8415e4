"""BLIP-2's objective: the weighted sum of the terms that the recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.generate import Search
from triptych.nn.decoder import Prompt
from triptych.nn.qformer import ImageKeysValues, QFormerOutput
from triptych.systems.blip2 import Blip2
from triptych.systems.blip2_losses import itc_loss, itc_similarity, itg_loss, itm_loss, itm_pairs
from triptych.text.prompt import IGNORED
from triptych.train.blip2.answers import answer_logits, caption_logits
from triptych.train.blip2.batches import Agreement, AnswerRows, Blip2Items, CaptionPieces, WordGuidance
from triptych.train.blip2.prompts import CaptionPrompt
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.self_critical import CaptionReward, sample_captions, self_critical_loss


@dataclass(frozen=True)
class Processes:
    """The processes that train together. ``gather``: ``[B, ...]`` of this one -> ``[N, ...]`` of all in the order of their ranks, through
    which gradients flow to each one's own part."""

    count: int = 1
    rank: int = 0
    gather: Callable[[Tensor], Tensor] = lambda x: x

    @classmethod
    def running(cls) -> Processes:
        distributed = torch.distributed
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return cls()
        return cls(distributed.get_world_size(), distributed.get_rank(), all_processes)


class Gathered(torch.autograd.Function):
    """``gather`` with gradients: the backward pass adds up those of all processes, and gives each process its own part."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def all_processes(tensor: Tensor) -> Tensor:
    """The tensors of all processes, in the order of their ranks; gradients flow to each one's own part."""
    return Gathered.apply(tensor)  # type: ignore[no-untyped-call]


class Contrast(NamedTuple):
    """``image_to_text [P, N * K]``, ``text_to_image [P * K, N]``: similarities over the temperature, of P photos with K texts here and
    N photos in all processes; ``all_ids [N]``: of those photos."""

    image_to_text: Tensor
    text_to_image: Tensor
    all_ids: Tensor


class Blip2Objective(nn.Module):
    """``last`` keeps each term for the log."""

    def __init__(
        self,
        model: Blip2,
        recipe: Blip2Recipe,
        dec: int,
        prompt: CaptionPrompt,
        processes: Processes = Processes(),
        reward_fn: CaptionReward | None = None,
    ) -> None:
        """``dec``: the word piece that a generated text begins with; ``reward_fn``: of sampled captions."""
        super().__init__()
        self.model, self.recipe, self.dec, self.prompt = model, recipe, dec, prompt
        self.processes, self.reward_fn = processes, reward_fn
        self.before: Tensor
        self.after: Tensor
        self.register_buffer("before", torch.tensor(prompt.before, dtype=torch.long), persistent=False)
        self.register_buffer("after", torch.tensor(prompt.after, dtype=torch.long), persistent=False)
        self.last: dict[str, float] = {}

    def forward(self, batch: Blip2Items, seed: int) -> Tensor:
        image = self.model.image_keys_values(batch.image_features)
        output = self.model.read_photos(image)
        losses: dict[str, Tensor] = {}
        reward: dict[str, float] = {}
        if batch.captions is not None:
            losses |= self.first_stage(image, output, batch, seed)
        if batch.lm_captions is not None or self.reward_fn is not None:
            soft_prompt = self.caption_soft_prompt(image, output)
            if batch.lm_captions is not None:
                losses["caption"] = self.caption_loss(soft_prompt, batch.lm_captions, batch.guidance)
            if self.reward_fn is not None:
                photos = batch.image_ids[: len(soft_prompt)].tolist()
                losses["scst"], reward["reward"] = self.reward_loss(soft_prompt, photos, seed)
        for name, rows in (("question", batch.questions), ("pair", batch.pairs)):
            if rows is not None:
                losses[name] = self.answer_loss(image, rows)
        self.last = {name: loss.item() for name, loss in losses.items()} | reward
        if not losses:
            return torch.zeros((), requires_grad=True)  # no question can be made of these photos
        return torch.stack([self.recipe.terms[name] * loss for name, loss in losses.items()]).sum()

    def first_stage(
        self, image: ImageKeysValues, output: QFormerOutput, batch: Blip2Items, seed: int
    ) -> dict[str, Tensor]:
        """ITC, ITM and ITG, those that have a weight. ``output``: of the Q-Former over the photos alone."""
        captions, ids, terms = batch.captions, batch.image_ids, self.recipe.terms
        assert captions is not None
        k = len(captions.input_ids) // len(ids)
        contrast = self.contrast(output, captions, ids, batch.agreement)
        losses = {}
        if terms.get("itc"):
            losses["itc"] = itc_loss(
                contrast.image_to_text.repeat_interleave(k, 0),
                contrast.text_to_image.repeat_interleave(k, 1),
                ids.repeat_interleave(k),
                contrast.all_ids.repeat_interleave(k),
            )
        if terms.get("itm"):
            losses["itm"] = self.matching_loss(image, batch, contrast, seed)
        if terms.get("itg"):
            losses["itg"] = self.writing_loss(output, captions, k)
        return losses

    def contrast(
        self, output: QFormerOutput, captions: CaptionPieces, image_ids: Tensor, agreement: Agreement | None = None
    ) -> Contrast:
        heads, gather = self.model.heads, self.processes.gather
        assert heads is not None
        image_features = heads.image_features(output.queries)
        text_features = self.model.text_features(*captions)
        image_to_text = itc_similarity(image_features, gather(text_features))
        text_to_image = itc_similarity(gather(image_features), text_features).T
        if agreement is not None:
            weight = self.recipe.rates.agreement
            image_to_text = image_to_text + weight * agreement.photos @ gather(agreement.captions).T
            text_to_image = text_to_image + weight * agreement.captions @ gather(agreement.photos).T
        temperature = heads.bounded_temperature
        return Contrast(image_to_text / temperature, text_to_image / temperature, gather(image_ids))

    def matching_loss(self, image: ImageKeysValues, batch: Blip2Items, contrast: Contrast, seed: int) -> Tensor:
        """ITM with the first of each photo's captions; negatives come from all photos of all processes."""
        qformer, heads, captions, gather = self.model.qformer, self.model.heads, batch.captions, self.processes.gather
        assert heads is not None and captions is not None
        photos = len(batch.image_ids)
        k = len(captions.input_ids) // photos
        image_rows, text_rows = itm_pairs(
            contrast.image_to_text[:, ::k],
            contrast.text_to_image[::k],
            batch.image_ids,
            contrast.all_ids,
            first=self.processes.rank * photos,
            generator=torch.Generator(captions.input_ids.device).manual_seed(seed),
            easy=self.recipe.rates.easy_negatives,
        )
        judged = math.ceil(self.recipe.batch.itm_photos * photos)
        image_rows, text_rows = (x.view(3, photos)[:, :judged].flatten() for x in (image_rows, text_rows))
        if len(contrast.all_ids) == photos:
            pairs = image.select(image_rows)
        else:
            pairs = self.model.image_keys_values(gather(batch.image_features)[image_rows])
        texts, text_mask = (gather(x[::k])[text_rows] for x in captions)
        return itm_loss(heads.itm_logits(qformer.encode_both(pairs, texts, text_mask).queries))

    def writing_loss(self, output: QFormerOutput, captions: CaptionPieces, k: int) -> Tensor:
        """ITG: the Q-Former writes the K captions of each photo behind its queries."""
        qformer, heads = self.model.qformer, self.model.heads
        assert heads is not None
        input_ids, text_mask = captions
        # BLIP-2 section 3.1: [DEC] in the place of [CLS]
        dec_ids = input_ids.clone()
        dec_ids[:, 0] = self.dec
        photos = torch.arange(len(input_ids) // k, device=input_ids.device)
        text = qformer.continue_text(dec_ids, output.past.reorder(photos.repeat_interleave(k))).text
        logits = heads.lm_logits(text, qformer.word_embeddings.weight)
        return itg_loss(logits, dec_ids, text_mask, self.recipe.rates.label_smoothing)

    def caption_soft_prompt(self, image: ImageKeysValues, output: QFormerOutput) -> Tensor:
        """``[P', Q, E]``: soft prompts of the photos that the language model captions, the first of the batch."""
        count = math.ceil(self.recipe.batch.lm_photos * len(output.queries))
        queries = output.queries[:count]
        if (instruction := self.prompt.instruction_for(count, queries.device)) is not None:
            queries = self.model.read_photos(image.select(torch.arange(count)), instruction).queries
        return self.model.soft_prompt(queries).float()

    def caption_loss(self, soft_prompt: Tensor, captions: Tensor, guidance: WordGuidance | None = None) -> Tensor:
        """-log p(caption | photo) of the frozen language model, perhaps guided, the mean over words (BLIP-2 section 3.2)."""
        logits = self.caption_logits(soft_prompt, captions)
        if guidance is not None:
            photos = (captions != IGNORED).nonzero()[:, 0]
            logits = logits.index_add(1, guidance.tokens, guidance.weights[photos])
        # BLIP-2 section 3.2: language modelling loss of the frozen language model behind the soft prompt
        return F.cross_entropy(logits, captions[captions != IGNORED])

    def reward_loss(self, soft_prompt: Tensor, photos: Sequence[int], seed: int) -> tuple[Tensor, float]:
        """The self-critical loss of captions that the frozen language model draws behind the soft prompts of ``photos``, and their mean
        reward."""
        lm, recipe, reward_fn = self.model.lm, self.recipe, self.reward_fn
        assert lm is not None and reward_fn is not None
        before, after = (lm.embed(ids).expand(len(photos), -1, -1) for ids in (self.before, self.after))
        prompt = Prompt(torch.cat([before, soft_prompt, after], 1).detach())
        sampling = Search(
            frozenset({reward_fn.end}),
            recipe.batch.max_tokens,
            n_best=recipe.batch.captions_per_photo,
            temperature=recipe.reward.temperature,
        )
        sampled = sample_captions(lm, prompt, reward_fn, photos, sampling, seed)
        labels, reward = (x.to(soft_prompt.device) for x in sampled)
        logits = self.caption_logits(soft_prompt, labels)
        return self_critical_loss(logits, labels, reward, sampling), reward.mean().item()

    def caption_logits(self, soft_prompt: Tensor, captions: Tensor) -> Tensor:
        """The language model's logits ``[N, V]`` for the N tokens of all ``captions [P, K, T]`` that are not IGNORED."""
        return caption_logits(self.model.network, soft_prompt, (self.before, self.after), captions)

    def answer_loss(self, image: ImageKeysValues, rows: AnswerRows) -> Tensor:
        """-log p(answer | photos, question) of the frozen language model, the mean over answers' tokens."""
        return F.cross_entropy(answer_logits(self.model, image, rows), rows.labels[rows.labels != IGNORED])
