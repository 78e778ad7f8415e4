"""With nothing said but generation_config.json, a converted model writes what transformers' ``generate`` writes with that file."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import test_blip2_t5_transformers as t5
import transformers
from PIL import Image
from test_blip2_t5_transformers import pair  # noqa: F401
from test_blip2_transformers import LETTERS, Pair, generation, instruct, photos, their_text, written  # noqa: F401
from test_idefics_transformers import DESCRIBE, FAKE, IMAGE, TURN, Idefics, idefics, plain  # noqa: F401

from triptych import InputError, load
from triptych.convert.checkpoint import convert_checkpoint
from triptych.tasks.words import sentence

CAPTION = "a photo of"
BEFORE = 6 + 1 + len(CAPTION)  # queries, </s>, bytes
BEAMS = {"do_sample": False, "num_beams": 3, "length_penalty": 2.0, "max_new_tokens": 14}


def converted(folder: Path, tmp_path: Path, **settings: Any) -> tuple[Any, transformers.GenerationConfig]:
    """The folder with these settings, converted, and transformers' reading of them."""
    copy = shutil.copytree(folder, tmp_path / "peer")
    path = copy / "generation_config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | settings))
    convert_checkpoint(copy, tmp_path / "ours")
    return load(tmp_path / "ours", device="cpu"), transformers.GenerationConfig.from_pretrained(copy)


def liked_tokens(pair: Pair, photo: Image.Image) -> list[int]:  # noqa: F811
    """The tokens that the model writes by itself."""
    return their_text(pair.peer, pair.processor(images=photo, text=CAPTION, return_tensors="pt"), {"beams": 1})[0]


def their_ids(peer: Any, inputs: Any, theirs: Any, before: int, ends: frozenset[int]) -> list[int]:
    """The new ids, behind ``before`` of the prompt and before the first end."""
    ids = peer.generate(**inputs, generation_config=theirs)[0, before:].tolist()
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_what_transformers_does_without_the_file(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
) -> None:
    """Its BLIP-2 classes do not read it by themselves: greedy, at most 20 tokens."""
    for photo in photos:
        inputs = generation.processor(images=photo, text=CAPTION, return_tensors="pt")
        ids = generation.peer.generate(**inputs)[0, inputs.input_ids.shape[1] :].tolist()
        ends = generation.ours.spec.search.eos
        expected = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
        assert list(written(generation.ours, f"<image>{CAPTION}", photo, beams=1, max_new_tokens=20).ids) == expected


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        (BEAMS, {8, 14}),
        (BEAMS | {"early_stopping": True}, {6, 7}),
        (BEAMS | {"early_stopping": "never"}, {14}),
        ({"do_sample": False, "num_beams": 1, "max_length": BEFORE + 2, "min_length": BEFORE + 1}, {2}),
        ({"do_sample": False, "num_beams": 2, "max_length": BEFORE + 9, "min_length": BEFORE + 7}, {8}),
        ({"do_sample": False, "num_beams": 1, "max_length": 9, "max_new_tokens": 5, "min_new_tokens": 4}, {5}),
    ],
    ids=lambda value: str(value) if isinstance(value, set) else None,
)
def test_lengths_and_the_end_of_the_search(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    settings: dict[str, Any],
    lengths: set[int],
) -> None:
    """Texts end at a token that the model likes, so that beams end and the search has to decide."""
    known = sorted(generation.ours.spec.search.eos)
    liked = liked_tokens(generation, photos[0])
    ours, theirs = converted(generation.folder, tmp_path, eos_token_id=[liked[3], *known], **settings)
    texts = []
    for photo in photos:
        inputs = generation.processor(images=photo, text=CAPTION, return_tensors="pt")
        expected = their_ids(generation.peer, inputs, theirs, inputs.input_ids.shape[1], ours.spec.search.eos)
        assert list(written(ours, f"<image>{CAPTION}", photo).ids) == expected
        texts.append(expected)
    assert {*map(len, texts)} == lengths
    assert (
        ours.ask(photos[0], "what?").end.new_tokens <= 10
    )  # answers keep their own length, whatever a caption's least one is


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_never_written(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    beams: int,
) -> None:
    """Tokens, two in a row, and an end, which ``bad_words_ids`` cannot ban."""
    end, liked = min(generation.ours.spec.search.eos), liked_tokens(generation, photos[0])
    banned = {"bad_words_ids": [[liked[0], liked[1]], [end]], "suppress_tokens": [liked[2]]}
    limits = {"do_sample": False, "num_beams": beams, "max_new_tokens": 12, "length_penalty": 1.0}
    ours, theirs = converted(generation.folder, tmp_path, **limits, **banned)
    assert ours.spec.search.banned_sequences == ((liked[0], liked[1]), (liked[2],))
    for photo in photos:
        inputs = generation.processor(images=photo, text=CAPTION, return_tensors="pt")
        expected = their_ids(generation.peer, inputs, theirs, inputs.input_ids.shape[1], ours.spec.search.eos)
        found = list(written(ours, f"<image>{CAPTION}", photo).ids)
        assert found == expected and liked[2] not in found
        assert (liked[0], liked[1]) not in pairwise(found)


def tokens_that_are_no_letters(tokenizer: Any) -> list[int]:
    return [i for word, i in tokenizer.get_vocab().items() if word not in LETTERS]


PENALTIES = [
    {"repetition_penalty": 2.5},
    {"repetition_penalty": 2.5, "num_beams": 3},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "num_beams": 3},
]


@pytest.mark.parametrize("settings", PENALTIES, ids=str)
def test_penalties_count_the_prompt(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """The prompt is what the model would write: not counted, it would write another text."""
    limits = {"do_sample": False, "max_new_tokens": 10, "length_penalty": 1.0, "num_beams": 1}
    limits["suppress_tokens"] = tokens_that_are_no_letters(generation.processor.tokenizer)
    ours, theirs = converted(generation.folder, tmp_path, **limits | settings)
    differs = False
    for photo in photos:
        liked = written(ours, f"<image>{CAPTION}", photo, beams=1, repetition_penalty=1.0, no_repeat_ngrams=0)
        prompt = ours.tokenizer.decode(liked.ids)
        inputs = generation.processor(images=photo, text=prompt, return_tensors="pt")
        expected = their_ids(generation.peer, inputs, theirs, inputs.input_ids.shape[1], ours.spec.search.eos)
        assert list(written(ours, f"<image>{prompt}", photo).ids) == expected
        differs |= list(written(ours, f"<image>{prompt}", photo, counts_prompt=False).ids) != expected
    assert differs


def test_penalties_of_an_idefics_count_the_prompt(
    idefics: Idefics,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Alone and in a batch, whose prompts begin with the same tokens."""
    limits = {"max_new_tokens": 8, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    limits["suppress_tokens"] = tokens_that_are_no_letters(idefics.processor.tokenizer)
    ours, theirs = converted(idefics.folder, tmp_path, do_sample=False, **limits)
    liked = ours.interleaved(photos[:1], IMAGE, repetition_penalty=1.0, no_repeat_ngrams=0).text
    expected = []
    for photo in photos:
        inputs = idefics.processor(text=[[photo, liked]], add_end_of_utterance_token=False, return_tensors="pt")
        ids = idefics.peer.generate(**inputs, generation_config=theirs)[0, inputs.input_ids.shape[1] :].tolist()
        expected.append(plain(idefics, ids))
    assert [answer.text for answer in ours.caption(photos, prompt=liked)] == expected
    assert ours.caption(photos[0], prompt=liked).text == expected[0]
    assert ours.caption(photos[0], prompt=liked, counts_prompt=False).text != expected[0]


def test_lengths_of_a_t5(pair: t5.Pair, photos: list[Image.Image], tmp_path: Path) -> None:  # noqa: F811
    """They count the token that its decoder starts with."""
    settings = {"num_beams": 2, "max_length": 9, "min_length": 5, "early_stopping": True, "length_penalty": 1.0}
    ours, theirs = converted(pair.folder, tmp_path, do_sample=False, repetition_penalty=1.0, **settings)
    search = ours.spec.search
    assert (search.max_new_tokens, search.min_new_tokens, search.early_stopping) == (8, 4, True)
    for photo in photos:
        inputs = pair.processor(images=photo, text=pair.prompt, return_tensors="pt")
        question = None if pair.prompt == CAPTION else pair.prompt
        expected = their_ids(pair.peer, inputs, theirs, 1, search.eos)
        assert list(written(ours, f"<image>{pair.prompt}", photo, question).ids) == expected


def test_lengths_of_an_idefics(idefics: Idefics, photos: list[Image.Image], tmp_path: Path) -> None:  # noqa: F811
    """Its prompt of a caption counts, with three tokens for the photo."""
    prompt = ["User:", photos[0], f"{DESCRIBE}{TURN * idefics.instructed}\nAssistant:"]
    inputs = idefics.processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")
    before = inputs.input_ids.shape[1]
    picture_tokens = [[idefics.processor.tokenizer.convert_tokens_to_ids(token)] for token in (FAKE, IMAGE)]
    limits = {"max_length": before + 6, "min_length": before + 6, "bad_words_ids": picture_tokens}
    ours, theirs = converted(idefics.folder, tmp_path, do_sample=False, **limits)
    ids = idefics.peer.generate(**inputs, generation_config=theirs)[0, before:].tolist()
    caption = ours.caption(photos[0])
    assert caption.text == sentence(plain(idefics, ids)) and len(ids) == caption.end.new_tokens == 6


def test_samples_are_drawn_as_the_file_says(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Only where a temperature is given: by itself the model writes the likeliest text. Of one token the likeliest is drawn."""
    limits = {"num_beams": 1, "max_new_tokens": 8, "top_k": 1, "top_p": 0.9}
    ours, _ = converted(generation.folder, tmp_path, do_sample=True, **limits)
    assert (ours.spec.search.top_k, ours.spec.search.top_p, ours.spec.search.temperature) == (1, 0.9, 0)
    greedy = ours.caption(photos[0])
    assert ours.caption(photos[0], temperature=50.0).text == greedy.text
    assert ours.caption(photos[0], temperature=50.0, top_k=0, top_p=1.0).text != greedy.text
    assert "top_k" not in greedy.recipe.search.to_dict()
    assert ours.caption(photos[0], temperature=50.0).recipe.search.to_dict()["top_k"] == 1


def test_what_is_not_supported_is_announced(
    generation: Pair,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown = {"guidance_scale": 1.5, "num_beam_groups": 1, "stop_strings": [], "max_length": 5}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    ours, _ = converted(generation.folder, tmp_path, **unknown, **sampled)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("triptych:")]
    assert line.endswith(
        "without: do_sample=true, guidance_scale=1.5, temperature=0.7, max_length=5 (shorter than the prompt)"
    )
    assert ours.spec.search.max_new_tokens == 30
    shutil.rmtree(tmp_path / "ours")
    shutil.rmtree(tmp_path / "peer")
    converted(generation.folder, tmp_path, do_sample=False, temperature=0.7, max_length=100_000, repetition_penalty=1.0)
    assert "triptych:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": "long"}, 'max_length is "long", expected a whole number'),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"bad_words_ids": [[]]}, "bad_words_ids and suppress_tokens hold"),
        ({"bad_words_ids": [[1 << 20]]}, "hold .1048576., expected ids of the vocabulary"),
        ({"suppress_tokens": 3}, "must be lists"),
        ({"do_sample": True, "top_p": 2}, "top_p is 2.*must lie between"),
        ({"do_sample": True, "top_k": [1]}, "top_k"),
    ],
)
def test_settings_that_make_no_sense(generation: Pair, tmp_path: Path, settings: dict[str, Any], message: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=message) as caught:
        converted(generation.folder, tmp_path, **settings)
    assert "generation_config.json" in str(caught.value)
