"""Exporting a BLIP-2 as graphs for plain ONNX Runtime: image encoder, Q-Former, language model, and the settings for captions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.locate import load_config
from triptych.engines.choice import Precision
from triptych.engines.onnx.building import build_blip2
from triptych.engines.onnx.cache import MANIFEST
from triptych.engines.onnx.coverage import NotCoveredError, check_blip2
from triptych.engines.onnx.opening import typed_source
from triptych.engines.onnx.sources import LanguageModelSource
from triptych.errors import InputError, TriptychError
from triptych.io.files import check_unused
from triptych.nn import efficientnet
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import CAPTION_INSTRUCTION, qformer_texts, split_at_images
from triptych.text.wordpiece import WordPieces

CAPTIONER = "captioner.json"


def export_onnx(directory: Path, target: Path, precision: Precision = "fp32") -> int:
    """Write the BLIP-2 in ``directory`` as graphs into the folder ``target``; returns their number.

    ``captioner.json`` describes the graphs' inputs for a caption: the photo's size and normalisation, the Q-Former's words, the tokens
    around the photo, the sizes of the cache, the tokens that end a text. The folder also has the word embeddings and ``tokenizer.json``.

    Raises:
        InputError: it is not a BLIP-2, or has parts without graphs; ``target`` is there and is not an empty folder.
        TriptychError: the disk is full or not writable.
    """
    system = load_config(directory).system
    if system != "blip2":
        raise InputError(f"{directory} is a {system} model: graphs can be exported of blip2 only")
    check_unused(target)
    try:
        config, source = typed_source(directory, Blip2Config)
        check_blip2(config.model)
        if config.lm is None:
            raise NotCoveredError("a BLIP-2 without a language model")
        target.mkdir(parents=True, exist_ok=True)
        build_blip2(source, target, precision)
        (target / MANIFEST).unlink()  # only the cache of graphs needs it
        words = WordPieces.read(directory / "vocab.txt")
        described = captioner(config, words, source.language_model)
        (target / CAPTIONER).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        source.language_model.tokenizer.tokenizer.save(str(target / "tokenizer.json"))
    except NotCoveredError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise InputError(f"{directory}: there are no graphs of {error}") from None
    except OSError as error:
        raise TriptychError(f"cannot write {target}: {error.strerror or error}") from None
    return len(list(target.glob("*.onnx")))


def captioner(config: CheckpointConfig[Blip2Config], words: WordPieces, lm: LanguageModelSource) -> dict[str, Any]:
    """The content of ``captioner.json``."""
    prompts, tokenizer = config.prompts, lm.tokenizer
    before, after = split_at_images(prompts.caption, 1)
    begins = (1 if not before else 0) if prompts.published else None
    instruction = qformer_texts(prompts.caption, 1) if prompts.whole else [CAPTION_INSTRUCTION]
    ids, _ = words.encode_arrays(instruction, config.model.qformer.max_positions)
    return {
        "image_size": config.encoder.image_size or efficientnet.DEFAULT_IMAGE_SIZE,
        "mean": list(efficientnet.MEAN),
        "std": list(efficientnet.STD),
        "question": ids[0].tolist() if config.model.instructed else [],
        "queries": config.model.qformer.queries,
        "before": tokenizer.encode(before, begin=begins == 0),
        "after": tokenizer.encode(after, begin=begins == 1),
        "end": sorted(tokenizer.eos_ids),
        "layers": lm.config.layers,
        "groups": lm.config.groups,
        "head_width": lm.config.head_width,
        "max_new_tokens": config.search.max_new_tokens,
    }
