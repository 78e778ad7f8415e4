"""How a published model writes: what generation_config.json says goes into the checkpoint, and is what transformers does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_blip2_transformers import Pair, generation, instruct, photos, their_text, written  # noqa: F401

from triptych import load
from triptych.checkpoints.config import SearchSpec
from triptych.checkpoints.locate import load_config
from triptych.convert.checkpoint import convert_checkpoint
from triptych.errors import InputError
from triptych.generate import generate
from triptych.tasks.blip2 import PhotoPrompt

OWN = SearchSpec(beams=5, length_penalty=1.0, max_new_tokens=30, words_once=False)


def settings(folder: Path, **entries: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(entries))
    return folder


def test_texts_under_these_settings(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
) -> None:
    """No three letters twice, at least 12 tokens: written as transformers writes."""
    folder = shutil.copytree(generation.folder, tmp_path / "peer")
    theirs = json.loads((folder / "generation_config.json").read_text())
    limits = {"num_beams": 1, "no_repeat_ngram_size": 3, "min_new_tokens": 12, "max_new_tokens": 16}
    settings(folder, **theirs, **limits)
    convert_checkpoint(folder, tmp_path / "ours")
    ours: Any = load(tmp_path / "ours", device="cpu")
    for photo in photos:
        inputs = generation.processor(images=photo, text="a photo of", return_tensors="pt")
        ids, _ = their_text(generation.peer, inputs, {"beams": 1}, no_repeat_ngram_size=3, min_new_tokens=12)
        answer = ours.caption(photo)
        assert list(written(ours, "<image>a photo of", photo).ids) == ids and len(ids) >= 12
        assert answer.recipe.search.no_repeat_ngrams == 3 and answer.recipe.prompt == "<image>a photo of"


def test_a_text_ends_at_whatever_names_an_end(generation: Pair, tmp_path: Path) -> None:  # noqa: F811
    folder = shutil.copytree(generation.folder, tmp_path / "peer")
    convert_checkpoint(settings(folder, eos_token_id=[7, 9]), tmp_path / "ours")
    lm = load_config(tmp_path / "ours").lm
    known = load_config(generation.target).lm
    assert lm and known and set(lm.eos or ()) == {7, 9, *(known.eos or ())}


def test_a_prompt_word_for_word(instruct: Pair, photos: list[Image.Image]) -> None:  # noqa: F811
    """``--prompt``: the Q-Former and the language model read it as it is, as transformers' processor passes it on."""
    prompt = "write a long story about the photo:"
    inputs = instruct.processor(images=photos[0], text=prompt, return_tensors="pt")
    ids, _ = their_text(instruct.peer, inputs, {"beams": 1})
    answer = instruct.ours.caption(photos[0], prompt=prompt, beams=1, max_new_tokens=16, repetition_penalty=1.0)
    assert answer.text == instruct.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert answer.recipe and answer.recipe.prompt == f"<image>{prompt}"
    record = answer.to_record("caption")["recipe"]
    assert record["pixels"]["size"] == 12 and record["search"]["length_penalty"] == 1.0
    assert instruct.ours.spec.search.repetition_penalty == 1.5
    with pytest.raises(InputError, match="writes without a prompt"):
        instruct.ours.caption(photos[0], prompt=prompt, writer="qformer")


def test_answers_are_written_as_published(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most 10 tokens, short ones preferred; a question for yes or no is not scored but answered like any other."""
    ours = generation.ours
    for question in ("what is it?", "Is there a dog?"):
        answer = ours.ask(photos[0], question)
        assert answer.scores is None and answer.recipe and answer.recipe.search
        assert answer.recipe.prompt == f"<image>Question: {question} Answer:"
        search = answer.recipe.search
        assert (search.beams, search.max_new_tokens, search.length_penalty) == (5, 10, -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(ours, "choose", None)  # not called: the answer is written
        list(ours.stream(photos[0], "Is there a dog?"))
    choice = ours.ask(photos[0], "Is there a dog?", ["yes", "no"])
    assert choice.scores is not None and choice.text in ("yes", "no")


@pytest.mark.parametrize("search", [{"beams": 2}, {"beams": 5}, {"beams": 3, "length_penalty": -1.0}])
def test_beams_are_refilled(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    search: dict[str, Any],
) -> None:
    """Texts that end, at one of several tokens that the models like: the same ids and scores as transformers', beams and all."""
    ended = set()
    for photo in photos:
        inputs = generation.processor(images=photo, text="a photo of", return_tensors="pt")
        liked = their_text(generation.peer, inputs, {"beams": 1})[0]
        for ends in ([liked[3]], [liked[2], liked[6]]):
            found = generation.peer.generate(
                **inputs,
                num_beams=search["beams"],
                length_penalty=search.get("length_penalty", 1.0),
                do_sample=False,
                max_new_tokens=16,
                eos_token_id=ends,
                num_return_sequences=2,
                output_scores=True,
                return_dict_in_generate=True,
            )
            (row,) = generation.ours.read([PhotoPrompt("<image>a photo of", [photo])])
            settings = generation.ours.search(**search, max_new_tokens=16, eos=frozenset(ends), n_best=2)
            mine = generate(generation.ours.engine, [row.pieces, row.pieces], settings)
            assert mine[0] == mine[1]
            for text, ids, score in zip(mine[0], found.sequences, found.sequences_scores, strict=True):
                theirs = ids[inputs["input_ids"].shape[1] :].tolist()
                end = next((i for i, token in enumerate(theirs) if token in ends), len(theirs))
                assert list(text.ids) == theirs[:end]
                assert text.score(settings.length_penalty) == pytest.approx(float(score), rel=1e-4)
                ended.add(text.finished)
    assert True in ended
