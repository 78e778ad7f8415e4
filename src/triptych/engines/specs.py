"""The specs of engines (``interface``), from what a checkpoint's config says: the same for every engine."""

from __future__ import annotations

from triptych.checkpoints.config import CheckpointConfig
from triptych.engines.interface import Blip2Spec, FlamingoSpec
from triptych.generate import Search
from triptych.systems.configs import Blip2Config, FlamingoConfig
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import WordPieces


def flamingo_spec(
    config: CheckpointConfig[FlamingoConfig], tokenizer: TextTokenizer, search: Search, max_tokens: int
) -> FlamingoSpec:
    """``max_tokens``: that the language model reads. The config must name its end token."""
    assert config.lm is not None and config.lm.end_id is not None
    return FlamingoSpec(
        tokenizer=tokenizer,
        search=search,
        image_id=config.model.image_id,
        end_id=config.lm.end_id,
        max_tokens=max_tokens,
        max_pictures=config.model.max_pictures,
        words_once=config.search.words_once,
        prompts=config.prompts,
        answers=config.search.answers(),
    )


def blip2_spec(
    config: CheckpointConfig[Blip2Config],
    words: WordPieces,
    tokenizer: TextTokenizer | None,
    search: Search,
    max_tokens: int,
) -> Blip2Spec:
    """``tokenizer`` and ``max_tokens``: of the language model; None and 0 if there is none."""
    model = config.model
    heads = model.feature_dim is not None
    return Blip2Spec(
        words=words,
        tokenizer=tokenizer,
        search=search,
        max_pieces=model.qformer.max_positions,
        max_tokens=max_tokens,
        queries=model.qformer.queries,
        instructed=model.instructed,
        matches=heads,
        writes=heads and model.writes,
        writer=model.writer,
        prompts=config.prompts,
        words_once=config.search.words_once,
        answers=config.search.answers(),
        start_id=config.lm.t5.start_id if config.lm and config.lm.t5 else None,
        contrast_weight=model.contrast_weight,
    )
