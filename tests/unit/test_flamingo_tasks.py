"""What a person does with a Flamingo: prompts with examples, choices, what is read again and what is not, evidence."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flamingo import flamingo_tasks

from triptych.data.interleaved import answer_part, example, with_pictures
from triptych.errors import InputError
from triptych.generate import MAX_NEW_TOKENS
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.caption_likelihood import things_named
from triptych.tasks.chat import ANSWER_TOKENS
from triptych.tasks.choices import GREY, blind_share, normalised_logprobs
from triptych.tasks.detection import caption_detection_logit
from triptych.tasks.flamingo import FlamingoTasks
from triptych.text.prompt import CAPTION, END, captions_by_picture, few_shot, question_prompt
from triptych.train.flamingo.batches import SequenceEncoder


@pytest.fixture
def model() -> FlamingoTasks:
    return flamingo_tasks()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)) for _ in range(5)]


def fresh() -> FlamingoTasks:
    return flamingo_tasks()


def test_a_batch_answers_as_its_items(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    together = model.caption(photos[:3])
    assert [a.text for a in together] == [fresh().caption(p).text for p in photos[:3]]
    questions = ["what?", "is it a dog?"]
    shown = [photos[:1], photos[1:3]]
    batch = model.ask(shown, questions)
    for answer, pictures, question in zip(batch, shown, questions, strict=True):
        alone = fresh().ask(pictures, question)
        assert alone.text == answer.text
        assert alone.logprob == pytest.approx(answer.logprob, abs=1e-4)


def test_a_request_to_describe_a_photo_is_answered_by_its_caption(
    model: FlamingoTasks, photos: list[Image.Image]
) -> None:
    asked = model.ask([photos[0], photos[:2]], ["Describe the photo.", "Describe the photo."])
    assert (
        asked[0].text == fresh().caption(photos[0]).text
        and asked[1].text == fresh().ask(photos[:2], "Describe the photo.").text
    )
    assert list(model.stream(photos[0], "Describe the photo.")) == list(fresh().stream(photos[0]))


def test_examples_and_their_order_and_pictures_count(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    shots = [(photos[0], "a dax"), (photos[1], "a blicket")]

    def scores(shots: Sequence[Any], image: Any = photos[2]) -> dict[str, float]:
        found = fresh().complete(image, shots, "this is", ["a dax", "a blicket"]).scores
        assert found is not None
        return dict(found)

    given = scores(shots)
    assert given != pytest.approx(scores(shots[::-1]))
    assert given != pytest.approx(scores([(photos[3], "a dax"), shots[1]]))
    assert given != pytest.approx(scores([(None, "a dax"), shots[1]]))
    assert given != pytest.approx(scores(shots, photos[3]))
    assert given == pytest.approx(scores(shots))


def test_a_prompt_reads_as_it_is_written_out(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    shots = [(photos[0], "a dax"), (None, "no picture"), (photos[1], " a  blicket ")]
    short = model.complete(photos[2], shots, "this is")
    text = "<image> a dax<|endofchunk|> no picture<|endofchunk|><image> a blicket<|endofchunk|><image> this is"
    long = fresh().interleaved([photos[0], photos[1], photos[2]], text)
    assert short.text == long.text and short.logprob == pytest.approx(long.logprob, abs=1e-5)


def test_captions_with_examples_differ_and_use_the_caption_prompt(
    model: FlamingoTasks, photos: list[Image.Image]
) -> None:
    found = model.caption(photos[2], shots=[(photos[0], "a dog runs")])
    text = "<image>\nCaption: a dog runs<|endofchunk|><image>\nCaption:"
    assert fresh().interleaved([photos[0], photos[2]], text).logprob == pytest.approx(found.logprob, abs=1e-5)
    assert model.caption(photos[2]).logprob != pytest.approx(found.logprob)


def test_questions_after_examples_read_as_written_out(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    examples = [(photos[0], "what is it?", "a  dog"), (None, "who?", "nobody")]
    questions = ["what?", "is it a cat?"]
    answers = model.ask_with_examples(photos[2:4], questions, examples, beams=2)
    before = "<image>\nQuestion: what is it?\nAnswer: a dog<|endofchunk|>Question: who?\nAnswer: nobody<|endofchunk|>"
    for answer, photo, question in zip(answers, photos[2:4], questions, strict=True):
        text = f"{before}<image>\nQuestion: {question}\nAnswer:"
        alone = fresh().interleaved([photos[0], photo], text, beams=2, max_new_tokens=ANSWER_TOKENS)
        assert answer.text == alone.text and answer.logprob == pytest.approx(alone.logprob, abs=1e-4)
    (plain,) = model.ask_with_examples(photos[2:3], ["what?"], [])
    assert plain.text == fresh().ask(photos[2], "what?").text
    with pytest.raises(InputError, match="has no text"):
        model.ask_with_examples(photos[2:3], ["what?"], [(photos[0], "what?", " ")])


def test_examples_that_a_batch_shares_are_read_once(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [(photos[0], "a dog runs"), (photos[1], "a cat sleeps")]
    read: list[tuple[int, ...]] = []
    forward = model.engine.model.forward

    def counted(ids: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        read.append(tuple(ids.shape))
        return forward(ids, *arguments, **settings)

    monkeypatch.setattr(model.engine.model, "forward", counted)
    for settings in ({"beams": 1}, {"beams": 3}):
        read.clear()
        together = model.caption(photos[2:5], shots=shots, **settings)
        assert read[0][0] == 1 and read[1] == (3, 1 + len("\nCaption:"))
        for answer, photo in zip(together, photos[2:5], strict=True):
            alone = fresh().caption(photo, shots=shots, **settings)
            assert alone.text == answer.text and alone.logprob == pytest.approx(answer.logprob, abs=1e-4)


def test_only_what_is_new_in_a_prompt_is_read(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    forward = model.engine.model.forward

    def counted(ids: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        read.append(ids.shape[1])
        return forward(ids, *arguments, **settings)

    monkeypatch.setattr(model.engine.model, "forward", counted)
    shots = [(photos[i], "a word for it") for i in range(3)]
    model.complete(photos[3], shots, max_new_tokens=1)
    whole = read[0]
    read.clear()
    again = model.complete(photos[4], shots, "and", max_new_tokens=3)
    assert read[0] == 1 + len(" and") < whole
    assert again.logprob == pytest.approx(fresh().complete(photos[4], shots, "and", max_new_tokens=3).logprob, abs=1e-4)
    read.clear()
    changed = [shots[0], (photos[4], "a word for it"), shots[2]]
    other = model.complete(photos[3], changed, max_new_tokens=1)
    assert read[0] == whole - 1 - len(" a word for it") - 1
    assert other.logprob == pytest.approx(fresh().complete(photos[3], changed, max_new_tokens=1).logprob, abs=1e-4)


def test_beams_leave_the_kept_prompt_whole(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    for settings in ({"beams": 3}, {"beams": 1}, {"temperature": 1.0, "n_best": 2}, {"beams": 3}):
        found = model.ask(photos[:2], "which?", **settings)
        alone = fresh().ask(photos[:2], "which?", **settings)
        assert found.text == alone.text and found.logprob == pytest.approx(alone.logprob, abs=1e-4)
    choices = ["left", "right", "both"]
    assert model.ask(photos[:2], "which?", choices).scores == pytest.approx(
        fresh().ask(photos[:2], "which?", choices).scores, abs=1e-4
    )


def test_prompts_are_read_as_in_training(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    """What training makes of a sequence, and what a prompt makes of it: the same ids."""
    rows = SequenceEncoder(model.spec.tokenizer, model.spec.image_id, 1000)
    question = [*with_pictures(question_prompt("which one?", 2), [0, 1]), answer_part("left")]
    caption = [*with_pictures(CAPTION, [2]), answer_part("a dog runs")]
    named = [*example(3, "This is", "a dax"), *example(4, "", "a wug")]
    row = rows([*question, *caption, *named])
    text = (
        "Left photo: <image>\nRight photo: <image>\nQuestion: which one?\nAnswer: left<|endofchunk|>"
        "<image>\nCaption: a dog runs<|endofchunk|><image> This is a dax<|endofchunk|><image> a wug<|endofchunk|>"
    )
    assert model.prompts.ids(text, 5) == row.input_ids
    assert (
        few_shot([(True, "This is a dax"), (True, "a wug")], "") + END
        == text[text.index("<image> This") :] + "<image><|endofchunk|>"
    )


def test_what_beams_wrote_was_not_read(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    """A prompt that goes on with what beam search wrote, of which the kept state knows nothing."""
    text = "<image> it is"
    written = model.interleaved(photos[:1], text, beams=3)
    longer = f"{text}{written.text} and more"
    again = model.interleaved(photos[:1], longer)
    alone = fresh().interleaved(photos[:1], longer)
    assert again.text == alone.text and again.logprob == pytest.approx(alone.logprob, abs=1e-4)


def logprob(model: FlamingoTasks, prompt: str, pictures: Sequence[Image.Image], text: str, end: bool = True) -> float:
    """log p(text | prompt), token by token and without a cache."""
    row, torch_model = model.prompts.row(prompt, pictures), model.engine.model
    ids = [*row.input_ids, *model.spec.tokenizer.encode(f" {text}"), *[model.spec.end_id] * end]
    media = torch_model.media(torch.stack(row.visual_tokens), [len(pictures)])
    with torch.no_grad():
        logprobs = torch_model.lm.logits(torch_model(torch.tensor([ids]), media))[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(len(row.input_ids), len(ids)))


def test_a_choice_scores_as_what_the_picture_adds_to_its_text(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    choices, prompt = ["A cat", "dogs."], "<image>\nQuestion: what?\nAnswer:"
    answer = model.ask(photos[0], "what?", choices)
    seen, blind = (
        np.array([logprob(fresh(), prompt, [picture], form) for form in ("cat", "dog")])
        for picture in (photos[0], GREY)
    )
    assert answer.scores == pytest.approx(
        dict(zip(choices, normalised_logprobs(seen - blind_share(blind)), strict=True)), abs=1e-3
    )
    assert answer.text == max(choices, key=answer.scores.__getitem__) and answer.logprob == answer.scores[answer.text]
    assert sum(map(exp, answer.scores.values())) == pytest.approx(1)
    assert answer.method == "language model"
    plain = model.interleaved(photos[:1], prompt, ["a cat", "dogs"])  # a text to be completed is taken as it is
    assert plain.scores == pytest.approx(
        {c: logprob(fresh(), prompt, photos[:1], c) for c in ("a cat", "dogs")}, abs=1e-3
    )


def test_a_remembered_picture_counts_by_its_place_where_places_have_embeddings(photos: list[Image.Image]) -> None:
    def tasks() -> FlamingoTasks:
        return flamingo_tasks(max_pictures=3)

    model = tasks()
    model.ask(photos[0], "what?")
    again = model.ask([photos[1], photos[0]], "which?")
    assert again.logprob == pytest.approx(tasks().ask([photos[1], photos[0]], "which?").logprob, abs=1e-5)
    with pytest.raises(InputError, match="3 at most"):
        model.ask(photos[:4], "which?")


def test_the_most_similar_examples_come_last(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    near = Image.fromarray(np.asarray(photos[0]) // 2 + np.asarray(photos[1]) // 2)
    shots = [(photos[0], "zero"), (photos[2], "two"), (None, "text"), (near, "near"), (photos[3], "three")]
    kept = model.most_similar(photos[0], shots, 2)
    assert kept[-1] == shots[0] and len(kept) == 2
    picked = [text for _, text in model.most_similar(photos[0], shots, 4)]
    assert sorted(picked) == ["near", "three", "two", "zero"] and picked[-1] == "zero"
    for count in (0, 5):
        with pytest.raises(InputError, match="of 4 with pictures"):
            model.most_similar(photos[0], shots, count)


def test_streaming_writes_the_greedy_answer(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    whole = fresh().ask(photos[0], "what?", beams=1)
    assert "".join(model.stream(photos[0], "what?")).strip() == whole.text
    assert not torch.is_inference_mode_enabled()


def test_evidence_is_over_every_picture(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    answer = model.caption(photos[2], shots=[(photos[0], "a dog"), (photos[1], "a cat")], explain=True)
    assert answer.evidence is not None
    maps = answer.evidence.maps
    assert maps.shape == (len(answer.tokens), 3, 3, 3)
    assert (maps.sum((1, 2, 3)) <= 1 + 1e-5).all() and (maps.sum((2, 3)) > 0).all()
    direct = maps[:, 2].sum((1, 2))
    assert (direct > 0.3).all() and (maps[:, :2].sum((1, 2, 3)) < 0.5).all()  # half of it is the own picture's
    single = model.caption(photos[2], explain=True).evidence
    assert single is not None and single.maps.shape[1] == 1


def test_maps_are_of_cells_not_of_latents_nor_of_a_class_token(model: FlamingoTasks) -> None:
    maps = torch.rand(2, 2, 3, 1 + 9 + 3)  # [P, H, R, class token + cells + latents]
    torch.testing.assert_close(model.engine.cells_of_latents([maps]), maps.mean(1)[..., 1:10])


@pytest.mark.parametrize(
    ("shots", "prompt", "reason"),
    [
        ([(0, " ")], "", "has no text"),
        ([(0, "a <image>")], "", "they are added to each example"),
        ([(0, "a dog")], "x<|endofchunk|>", "they are added to each example"),
        ([(0, "a word " * 60)], "", "reads 300 at most"),
    ],
)
def test_bad_prompts_are_refused(
    model: FlamingoTasks, photos: list[Image.Image], shots: list[Any], prompt: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        model.complete(photos[1], [(photos[i], text) for i, text in shots], prompt)


def test_a_picture_that_cannot_be_read_spoils_nothing(
    model: FlamingoTasks, photos: list[Image.Image], tmp_path: Path
) -> None:
    before = model.complete(photos[1], [(photos[0], "a dog")]).logprob
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        model.complete(photos[1], [(photos[0], "a dog"), (str(broken), "a cat"), (photos[2], "a bird")])
    with pytest.raises(InputError, match="2 pictures but 1 <image>"):
        model.interleaved(photos[:2], "<image> a dog")
    with pytest.raises(InputError, match="give 1 to 128"):
        model.ask([], "what?")
    assert model.complete(photos[1], [(photos[0], "a dog")]).logprob == pytest.approx(before, abs=1e-5)


def test_several_pictures_are_captioned_one_by_one_before_a_free_answer(
    model: FlamingoTasks, photos: list[Image.Image]
) -> None:
    captions = [fresh().interleaved([photo], CAPTION).text for photo in photos[:2]]
    text = captions_by_picture(captions)
    head, torch_model = fresh().prompts.row(text, photos[:2]), model.engine.model
    with model.read_captions(PictureQuestion(photos[:2], "which?")) as (row, prefix):
        logits = prefix.logits.clone()
    assert row.input_ids == head.input_ids + model.spec.tokenizer.encode("\nQuestion: which?\nAnswer:")
    ids, media = torch.tensor([row.input_ids]), torch_model.media(torch.stack(head.visual_tokens), [2])

    def follows(away: int | None) -> torch.Tensor:
        with torch.no_grad():
            return torch_model.lm.logits(torch_model(ids, media, blind_from=away))[:, -1]

    torch.testing.assert_close(logits, follows(len(head.input_ids)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, follows(None), atol=1e-2)
    assert "".join(model.stream(photos[:2], "which?")).strip() == model.ask(photos[:2], "which?", beams=1).text.strip()
    alone = fresh().interleaved(photos[:2], text)  # what was read without a look is not taken for this
    assert model.interleaved(photos[:2], text).logprob == pytest.approx(alone.logprob, abs=1e-4)
    shown = model.ask(photos[:2], "which?", explain=True).evidence
    assert shown is not None and shown.maps.shape[1] == 2
    assert 0 < shown.maps.sum((1, 2, 3)).max() <= 0.5  # what was read had looked; what is written did not
    placed = model.ask(photos[:2], "<image> or <image>?")  # as it says itself
    written = fresh().interleaved(photos[:2], question_prompt("<image> or <image>?", 2), max_new_tokens=ANSWER_TOKENS)
    assert placed.logprob == pytest.approx(written.logprob, abs=1e-4)


def test_the_picture_that_shows_something_is_the_one_whose_caption_would_begin_with_it(
    model: FlamingoTasks, photos: list[Image.Image]
) -> None:
    def expected(text: str, names: Sequence[str], pictures: Sequence[Image.Image]) -> dict[str, float]:
        scores = normalised_logprobs([logprob(fresh(), CAPTION, [picture], text, end=False) for picture in pictures])
        return dict(zip(names, scores, strict=True))

    found = model.compare(photos[0], photos[1], "Which photo shows a dog?")
    assert found.scores == pytest.approx(expected("a dog", ("left", "right"), photos[:2]), abs=1e-3)
    assert found.text == max(found.scores, key=found.scores.__getitem__) and found.method == "caption likelihood"
    turned = model.compare(photos[1], photos[0], "Which photo shows a dog?")
    assert {found.text, turned.text} == {"left", "right"}  # the same photo
    other = model.ask(photos[:2], "which one is it?", ["the right one", "a: left"], explain=True)
    assert other.scores is not None and list(other.scores) == ["a: left", "the right one"]
    assert other.evidence is not None and other.evidence.maps.shape[1] == 2
    many = model.ask(photos[:3], "In which picture is x?", ["2", "photo 3", "photo 1"]).scores
    assert many == pytest.approx(expected("x", ("photo 1", "2", "photo 3"), photos[:3]), abs=1e-3)


def test_choices_of_two_pictures_do_not_depend_on_their_order(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    found = model.ask(photos[:2], "Is the left one bigger?", ["yes", "no"])
    turned = model.ask(photos[1::-1], "Is the right one bigger?", ["yes", "no"])
    assert found.scores == pytest.approx(turned.scores, abs=1e-3)
    sides = model.ask(photos[:2], "What is nicer?", ["left", "right"]).scores
    other = model.ask(photos[1::-1], "What is nicer?", ["left", "right"]).scores
    assert sides is not None and other is not None
    assert sides["left"] == pytest.approx(other["right"], abs=1e-3)


def test_whether_something_is_there_is_decided_by_captions(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    gains = [
        logprob(fresh(), CAPTION, [photo], "a dog", end=False) - logprob(fresh(), CAPTION, [GREY], "a dog", end=False)
        for photo in photos[:2]
    ]
    for pictures, gain in (([photos[0]], gains[0]), ([photos[1]], gains[1]), (photos[:2], max(gains))):
        answer = model.ask(pictures, "Is there a dog in the photo?", explain=True)
        logit = caption_detection_logit(gain, float("nan"))
        assert answer.text == ("yes" if logit > 0 else "no") and answer.method == "caption likelihood"
        assert answer.scores is not None and answer.evidence is not None
        assert answer.scores["yes"] - answer.scores["no"] == pytest.approx(logit, abs=1e-3)
    assert (
        "".join(model.stream(photos[0], "Is there a dog in the photo?")) == model.ask(photos[0], "Is there a dog?").text
    )
    assert (
        model.ask(photos[0], "Is there a dog?", ["No.", "Yes"]).text.strip(".").lower()
        == model.ask(photos[0], "Is there a dog?").text
    )


def test_what_pictures_share_is_what_all_captions_would_name(
    model: FlamingoTasks, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {"a dog": [5, -1, 4], "a horse": [4, 5, 6], "a man": [9, 2, 9], "a cat": [1, 0, 1]}
    monkeypatch.setattr(model.likelihood, "gains", lambda texts, images: np.array([gains[t] for t in texts]).T)
    captions = ["A dog is on a horse.", "A man is running."]
    found = model.likelihood.shared("nothing much", captions, photos[:3], explain=True)
    assert found is not None and found.text == "all show a horse" and found.evidence is not None
    assert found.evidence.maps.shape[1] == 3
    assert model.likelihood.shared("all show a dog", captions, photos[:3], explain=False).text == "all show a horse"
    assert model.likelihood.shared("all show a cat", captions, photos[:3], explain=False) is None  # it stands
    assert model.likelihood.shared("nothing much", ["A man is running."], photos[:3], explain=False) is None
    assert things_named("A black and white dog is running with two men and a group of people.") == ["a dog", "people"]
    assert things_named("The unicycle is near the hourglass.") == ["a unicycle", "an hourglass"]


def test_long_questions_about_several_pictures_are_refused(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    """With choices, by ``which``, and free."""
    long = f"Which photo shows {'x' * 400}?"
    for choices in (["left", "right"], None):
        with pytest.raises(InputError, match="the language model reads 300 at most"):
            model.ask(photos[:2], long, choices)
    with pytest.raises(InputError, match="ends an example"):
        model.compare(photos[0], photos[1], f"Which photo shows {END}?")


def test_text_looks_at_no_picture_from_a_place_on(model: FlamingoTasks, photos: list[Image.Image]) -> None:
    row, torch_model = model.prompts.row("<image> a dog<image> a cat", photos[:2]), model.engine.model
    media, away, maps = (
        torch_model.media(torch.stack(row.visual_tokens), [2]),
        len(row.input_ids) - 3,
        list[torch.Tensor](),
    )
    torch_model(torch.tensor([row.input_ids]), media, maps=maps, blind_from=away)
    for looked in maps:
        assert not looked[:, away:].any() and looked[:, away - 1].sum() == pytest.approx(1, abs=1e-5)


def test_an_answer_about_many_pictures_stays_within_the_bound_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = fresh()
    lengths = [tasks.answer_settings(pictures)["max_new_tokens"] for pictures in (1, 3, 100)]
    assert lengths == [ANSWER_TOKENS, 3 * ANSWER_TOKENS, MAX_NEW_TOKENS]
    monkeypatch.setattr(tasks, "spec", replace(tasks.spec, answers={"max_new_tokens": 5, "length_penalty": -1.0}))
    assert tasks.answer_settings(2) == {"max_new_tokens": 10, "length_penalty": -1.0}
