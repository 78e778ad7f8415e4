"""How a published model writes: the settings of transformers' generation_config.json as a ``SearchSpec``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from triptych.checkpoints.config import SearchSpec, decode_config
from triptych.checkpoints.weight_files import read_json
from triptych.convert.published import StoredLM
from triptych.errors import InputError
from triptych.generate import MAX_NEW_TOKENS
from triptych.text.prompt import END, IMAGE
from triptych.text.tokenizer import TextTokenizer

SEARCH_FIELDS = {
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngrams",
    "min_new_tokens": "min_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "early_stopping": "early_stopping",
}
SAMPLING_FIELDS = ("top_k", "top_p")
SAMPLING = ("temperature", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
NEUTRAL: Mapping[str, Any] = {  # settings that are not supported -> the value at which they change nothing
    "do_sample": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "dola_layers": None,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "force_words_ids": None,
    "constraints": None,
    "renormalize_logits": False,
    "token_healing": False,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
}
MAX_BANNED = 65536  # sequences


def published_search(directory: Path, own: SearchSpec, lm: StoredLM, prompt_tokens: int) -> SearchSpec:
    """``own`` with the settings of generation_config.json. One line on stderr names those that change texts and are not supported.

    Penalties count the prompt of a decoder, as in transformers 5.

    Args:
        prompt_tokens: the number of tokens before a caption, which ``max_length`` and ``min_length`` include; 1 for an encoder-decoder.

    Raises:
        InputError: a setting is out of bounds.
    """
    path = directory / "generation_config.json"
    settings = read_json(path, optional=True)
    theirs = {ours: settings[name] for name, ours in SEARCH_FIELDS.items() if settings.get(name) is not None}
    if settings.get("do_sample"):
        theirs |= {name: settings[name] for name in SAMPLING_FIELDS if settings.get(name) is not None}
    theirs |= lengths(path, settings, prompt_tokens)
    theirs |= banned_sequences(path, settings, lm) | {"counts_prompt": True}
    search = decode_config(msgspec.structs.asdict(own) | theirs, SearchSpec, path)
    assert lm.spec.network is not None
    longest = min(search.max_new_tokens, MAX_NEW_TOKENS, lm.spec.network.max_positions - prompt_tokens)
    search = msgspec.structs.replace(
        search, max_new_tokens=longest, min_new_tokens=min(search.min_new_tokens, max(longest, 0))
    )
    try:
        search.search(frozenset())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if left := unsupported(settings, prompt_tokens):
        print(f"triptych: {path}: not supported, texts are written without: {', '.join(left)}", file=sys.stderr)
    return search


def lengths(path: Path, settings: Mapping[str, Any], prompt_tokens: int) -> dict[str, int]:
    """The longest and the shortest text by ``max_length`` and ``min_length``, which ``max_new_tokens`` and ``min_new_tokens`` overrule.

    Raises:
        InputError: a length is not a whole number.
    """
    limits = {}
    for theirs, ours in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if (length := settings.get(theirs)) is None or settings.get(ours) is not None:
            continue
        if type(length) is not int:
            raise InputError(f"{path}: {theirs} is {json.dumps(length)[:60]}, expected a whole number")
        if length > prompt_tokens:
            limits[ours] = length - prompt_tokens
    return limits


def banned_sequences(path: Path, settings: Mapping[str, Any], lm: StoredLM) -> dict[str, list[list[int]]]:
    """``bad_words_ids`` and ``suppress_tokens``; an end token alone cannot be banned by the first, as in transformers.

    Raises:
        InputError: they are not lists of ids of the vocabulary.
    """
    assert lm.spec.network is not None
    words, tokens = settings.get("bad_words_ids") or [], settings.get("suppress_tokens") or []
    if not isinstance(words, list) or not isinstance(tokens, list) or len(words) + len(tokens) > MAX_BANNED:
        raise InputError(f"{path}: bad_words_ids and suppress_tokens must be lists of at most {MAX_BANNED}")
    ends = [[end] for end in lm.spec.eos or ()]
    sequences = [word for word in words if word not in ends] + [[token] for token in tokens]
    for sequence in sequences:
        known = isinstance(sequence, list) and sequence and all(type(token) is int for token in sequence)
        if not known or not all(0 <= token < lm.spec.network.vocab_size for token in sequence):
            raise InputError(
                f"{path}: bad_words_ids and suppress_tokens hold {json.dumps(sequence)[:60]}, expected ids of the vocabulary"
            )
    return {"banned_sequences": sequences} if sequences else {}


def unsupported(settings: Mapping[str, Any], prompt_tokens: int) -> list[str]:
    """The settings that change texts in transformers and not here, each as ``name=value``."""
    names = [name for name, value in NEUTRAL.items() if settings.get(name) not in (None, value, [], {})]
    if "do_sample" in names:
        names += [name for name in SAMPLING if settings.get(name) is not None]
    left = [f"{name}={json.dumps(settings[name])[:40]}" for name in names]
    longest = settings.get("max_length")
    if settings.get("max_new_tokens") is None and longest is not None and longest <= prompt_tokens:
        left.append(f"max_length={longest} (shorter than the prompt)")
    return left


def prompt_length(tokenizer: TextTokenizer, prompt: str, photo_tokens: int) -> int:
    """The number of tokens of a prompt in which each photo has ``photo_tokens``, and a mark of an example's end has one."""
    texts = [text for part in prompt.split(IMAGE) for text in part.split(END)]
    written = sum(len(tokenizer.encode(text)) for text in texts)
    return len(tokenizer.encode("", begin=True)) + written + prompt.count(IMAGE) * photo_tokens + prompt.count(END)
