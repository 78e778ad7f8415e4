"""What a person does with BLIP-2: captions, questions, choices, matches; bad input; evidence."""

import numpy as np
import pytest
import torch
from pictures import block_photos
from PIL import Image
from tiny_blip2 import blip2_tasks, read_prompt

from triptych.errors import InputError
from triptych.tasks import Blip2Tasks
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.blip2 import PhotoPrompt
from triptych.tasks.choices import GREY, blind_share, normalised_logprobs
from triptych.tasks.words import sentence
from triptych.text.prompt import CAPTION, CAPTION_INSTRUCTION, IGNORED
from triptych.train.blip2.batches import PICTURE, AnsweredQuestion, QuestionEncoder
from triptych.train.blip2.prompts import blip2_caption_prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Blip2Tasks:
    return blip2_tasks()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return block_photos(4)


def test_a_batch_of_captions_equals_its_photos(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    together = model.caption(photos, beams=3, n_best=2)
    assert [a.text for a in together] == [model.caption(p, beams=3, n_best=2).text for p in photos]
    assert len({round(a.logprob, 4) for a in together}) == 4  # the photos matter


def test_a_batch_of_questions_equals_its_items(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    asked = [(photos[0], "what?"), ([photos[1], photos[2]], "which one is it?"), (photos[3], "a")]
    together = model.ask([images for images, _ in asked], [question for _, question in asked], beams=2)
    assert [a.text for a in together] == [model.ask(images, question, beams=2).text for images, question in asked]
    with pytest.raises(InputError, match="1 questions for 2 photos"):
        model.ask([photos[0], photos[1]], ["what?"])


def test_both_photos_and_the_question_matter(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    def scores(*images: Image.Image, question: str = "which?") -> list[float]:
        found = model.ask(list(images), question, ["left", "right"]).scores
        assert found is not None
        return list(found.values())

    base = scores(photos[0], photos[1])
    assert scores(photos[0], photos[1]) == base
    assert scores(photos[0], photos[2]) != base and scores(photos[2], photos[1]) != base
    assert scores(photos[1], photos[0]) != base
    assert scores(photos[0], photos[1], question="who?") != base


def test_choices_are_scored_by_what_the_photo_adds_to_them_as_whole_answers(
    model: Blip2Tasks, photos: list[Image.Image]
) -> None:
    tokenizer, engine, choices = model.tokenizer, model.engine, ["a Cat", "no", "yes it is"]

    def logprobs(photo: Image.Image) -> np.ndarray:
        """The same without a cache, one at a time."""
        (row,), found = model.read([model.question_prompt(PictureQuestion([photo], "what?"))]), []
        for form in ("cat", "no", "yes it is"):
            ids = torch.tensor([*tokenizer.encode(f" {form}"), *tokenizer.eos_ids])
            inputs = engine.model.prompt([engine.tensors([*row.pieces, ids.tolist()])]).inputs
            each = engine.lm.logits(engine.lm(inputs))[0, -len(ids) - 1 : -1].log_softmax(-1)
            found.append(each.gather(1, ids[:, None]).sum().item())
        return np.array(found)

    answer = model.ask(photos[0], "what?", choices)
    expected = normalised_logprobs(logprobs(photos[0]) - blind_share(logprobs(GREY)))
    assert answer.scores == pytest.approx(dict(zip(choices, expected, strict=True)), abs=1e-3)
    assert answer.text == choices[int(expected.argmax())] and answer.logprob == answer.scores[answer.text]


def test_the_photo_that_shows_something_is_chosen_by_matching(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    rerank = [m.rerank for m in model.match(photos[:2], "a dog")]
    found = model.compare(photos[0], photos[1], "In which photo is a dog?", explain=True)
    assert found.method == "matching" and found.text == ("left", "right")[int(np.argmax(rerank))]
    assert list(found.scores.values()) == pytest.approx(normalised_logprobs(rerank).tolist(), abs=1e-4)
    assert found.evidence is not None and found.evidence.maps.shape[1] == 2
    turned = model.compare(photos[1], photos[0], "In which photo is a dog?")
    assert {found.text, turned.text} == {"left", "right"}
    by_words = model.choose_answer(PictureQuestion(photos[:2], "In which photo is a dog?"), ["left", "right"])
    again = model.choose_answer(PictureQuestion(photos[1::-1], "In which photo is a dog?"), ["left", "right"])
    assert by_words.method == "language model"
    assert by_words.scores["left"] == pytest.approx(again.scores["right"], abs=1e-3)


def test_matching_is_photo_by_photo_and_equals_single_pairs(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    texts = ["a dog", "two", "a cat on a mat"]
    matches = model.match(photos, texts)
    assert [(m.image, m.text) for m in matches] == [(i, t) for i in range(4) for t in range(3)]
    for m in matches:
        [alone] = model.match(photos[m.image], texts[m.text])
        for name in ("itc_cosine", "itc_scaled", "itm_prob", "rerank"):
            assert getattr(m, name) == pytest.approx(getattr(alone, name), abs=1e-5, rel=1e-5)
        assert -1 <= m.itc_cosine <= 1 and 0 <= m.itm_prob <= 1
    features, told = model.itc_images(photos), model.itc_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    cosine = (features @ told.T).max(1)
    np.testing.assert_allclose(cosine.flatten(), [m.itc_cosine for m in matches], atol=1e-5)


def test_evidence_of_a_caption_an_answer_and_a_match(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    answer = model.caption(photos[0], explain=True)
    assert answer.evidence is not None
    assert answer.evidence.maps.shape == (len(answer.tokens), 1, 3, 3)
    both = model.ask(photos[:2], "which?", ["left", "right"], explain=True)
    assert both.evidence is not None and both.evidence.maps.shape == (1, 2, 3, 3)
    assert (both.evidence.maps.sum((2, 3)) <= 1 + 1e-5).all()  # shares of the attention that fell on the photos
    [found] = model.match(photos[0], "a cat", explain=True)
    assert found.evidence is not None and found.evidence.words == ("a", "cat", "(whole text)")


def test_the_qformer_writes_by_itself_and_shows_where_it_looked(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    written = model.caption(photos, writer="qformer", beams=2, explain=True)
    assert [a.text for a in written] == [model.caption(p, writer="qformer", beams=2).text for p in photos]
    for answer in written:
        assert answer.evidence is not None and answer.evidence.maps.shape == (len(answer.tokens), 1, 3, 3)
        assert (answer.evidence.maps.sum((1, 2, 3)) > 0).all()
    assert model.caption(photos[0], writer="lm").text == model.caption(photos[0]).text
    with pytest.raises(InputError, match="unknown writer 'me'"):
        model.caption(photos[0], writer="me")


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_a_question_is_read_as_in_training(model: Blip2Tasks, photos: list[Image.Image], pictures: int) -> None:
    """What training makes of a question, and what answering makes of it: the same ids, photos at the same places."""
    question, shown = "which one is it?", photos[:pictures]
    torch_model, queries = model.engine.model, model.spec.queries
    rows = QuestionEncoder(model.spec.words, model.tokenizer, queries)(
        [AnsweredQuestion(tuple(range(pictures)), question, "x")]
    )
    image = model.engine.image_keys_values(model.encode(shown))
    read = torch_model.read_photos(image, (rows.question_ids, rows.question_mask)).queries
    (asked,) = model.read([model.question_prompt(PictureQuestion(shown, question))])
    soft = [piece for piece in asked.pieces if not isinstance(piece, list)]
    torch.testing.assert_close(torch.stack(soft), torch_model.soft_prompt(read))
    ids = [piece if isinstance(piece, list) else [PICTURE] * len(piece) for piece in asked.pieces]
    prompt = [i for piece in ids for i in piece]
    assert rows.input_ids[0, : len(prompt)].tolist() == prompt
    told = (rows.labels[0] != IGNORED).nonzero()[:, 0]
    assert told[0] == len(prompt) - 1 and rows.labels[0, told].tolist() == [
        *model.tokenizer.encode(" x"),
        *model.tokenizer.eos_ids,
    ]


def test_evidence_of_a_word_comes_from_its_making(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    """The map of a word depends on the words before it, and neither on itself nor on what follows."""
    (row,), (features,) = model.read([PhotoPrompt("<image>a", photos[:1])], explain=True), model.encode(photos[:1])

    def maps(ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return model.engine.maps(row.pieces, row.cells, ids)[:, 0], model.engine.writer_maps(features, ids)

    for before, after in zip(maps([5, 6, 7, 8]), maps([5, 9, 7, 8]), strict=True):  # the second word is another
        np.testing.assert_allclose(before[:2], after[:2], atol=1e-6)
        assert (np.abs(before[2:] - after[2:]).max((1, 2)) > 1e-6).all()


def test_a_request_to_describe_a_photo_is_answered_by_its_caption(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    answers = model.ask(photos[:3], ["what?", "Describe this image.", "what?"], beams=2)
    assert answers[1].text == model.caption(photos[1], beams=2).text
    assert answers[0].text == model.ask(photos[0], "what?", beams=2).text
    assert list(model.stream(photos[1], "Describe this image.")) == list(model.stream(photos[1]))
    choices = ["a", "b"]
    assert model.ask(photos[1], "Describe this image.", choices).text in choices


def test_a_question_about_three_photos_is_answered_photo_by_photo(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    answer = model.ask(photos[:3], "What animals are in these photos?", explain=True)
    alone = [model.ask(photo, "What animal is in the photo?", explain=True) for photo in photos[:3]]
    assert answer.text == "; ".join(f"photo {n}: {one.text}" for n, one in enumerate(alone, 1))
    assert answer.logprob == pytest.approx(sum(one.logprob for one in alone)) and answer.scores is None
    assert answer.evidence is not None and answer.evidence.maps.shape[1] == 3
    first = alone[0].evidence
    assert first is not None
    np.testing.assert_allclose(answer.evidence.maps[: len(first.words), 0], first.maps[:, 0], atol=1e-5)
    assert not answer.evidence.maps[: len(first.words), 1:].any()
    captions = model.ask(photos[:3], "Describe each photo.").text
    assert captions == "; ".join(f"photo {n}: {model.caption(photo).text}" for n, photo in enumerate(photos[:3], 1))


def test_other_questions_about_several_photos(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    assert model.ask(photos[:3], "Which photo shows a dog?").text in ("photo 1", "photo 2", "photo 3")
    assert model.ask(photos[:2], "Which photo shows a dog?").text in ("left", "right")
    alone = [model.ask(photo, "How many dogs are there?").text for photo in photos[:2]]
    assert model.ask(photos[:2], "How many dogs are there?").text == f"left: {alone[0]}; right: {alone[1]}"
    written = model.ask(photos[:2], "How many dogs are there?", top_logprobs=1).end.tokens[0]
    each = [model.ask(photo, "How many dogs are there?", top_logprobs=1).end.tokens[0] for photo in photos[:2]]
    assert [token.text for token in written] == [token.text for tokens in each for token in tokens]
    for together in ("What does photo 2 show?", "What does the last <image><image><image> show?"):
        assert not model.ask(photos[:3], together).text.startswith("photo 1: ")
    for question in ("What do these have in common?", "How do these photos differ?", "Compare the photos."):
        with pytest.raises(InputError, match="cannot say what photos have in common or how they differ: ask flamingo"):
            model.ask(photos[:2], question)


def test_streaming_writes_the_greedy_text(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    greedy = model.ask(photos[0], "what?", beams=1).text
    assert "".join(model.stream(photos[0], "what?")).strip() == greedy.rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("question", "choices", "message"),
    [
        ("  ", None, "question is empty"),
        ("<image>", None, "question is empty"),
        ("a <image> b <image> c", None, "1 picture but 2 <image>"),
        ("what?", ["yes"], "give at least two choices"),
        ("what?", ["yes", " yes "], "'yes' is given twice"),
        ("what?", ["yes", " "], "a choice is empty"),
        ("a" * 100, None, "word pieces, 64 at most"),
    ],
)
def test_bad_questions_are_refused(
    model: Blip2Tasks, photos: list[Image.Image], question: str, choices: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.ask(photos[0], question, choices)


def test_too_long_for_the_language_model_is_refused_not_cut(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="the language model reads 300 at most"):
        model.read([PhotoPrompt("<image>" + "x" * 400, photos[:1])])


def test_no_photo_no_text(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    with pytest.raises(InputError, match="0 photos"):
        model.ask([], "what?")
    with pytest.raises(InputError, match="at least one photo and one text"):
        model.match([], ["a"])
    for nothing in (" ", "\u200b", "\ufeff", "\x01", "\u00ad"):
        with pytest.raises(InputError, match="text is empty"):
            model.match(photos[0], ["a", nothing], explain=True)
    assert model.caption([]) == []


def test_the_first_stage_alone_writes_but_does_not_answer(photos: list[Image.Image]) -> None:
    first = blip2_tasks("first", with_lm=False)
    answers = first.caption(photos, beams=2)
    assert [a.text for a in answers] == [first.caption(p, beams=2).text for p in photos]
    assert (
        "".join(first.stream(photos[0])) == answers[0].text == "".join(first.stream(photos[0], "Describe the photo."))
    )
    with pytest.raises(InputError, match="no language model"):
        first.ask(photos[0], "what?")
    with pytest.raises(InputError, match="no language model"):
        "".join(first.stream(photos[0], "what?"))


def test_sentences() -> None:
    assert sentence("a dog runs") == "A dog runs." and sentence("") == ""


def test_captions_are_read_with_the_instruction_of_training(model: Blip2Tasks, photos: list[Image.Image]) -> None:
    torch_model, words = model.engine.model, model.spec.words
    image = model.engine.image_keys_values(model.encode(photos[:1]))
    prompt = blip2_caption_prompt(model.engine.blip2)
    asked = prompt.instruction_for(1, CPU)
    assert asked is not None and torch.equal(asked[0], words.encode([CAPTION_INSTRUCTION])[0])
    expected = torch_model.soft_prompt(torch_model.read_photos(image, asked).queries)
    (row,) = model.read([PhotoPrompt(CAPTION, photos[:1])])
    torch.testing.assert_close(row.pieces[1], expected[0])
    assert not torch.allclose(torch_model.soft_prompt(torch_model.read_photos(image).queries), expected)
    before, after = (torch.tensor(ids, dtype=torch.long) for ids in (prompt.before, prompt.after))
    validated = torch_model.prompt([[before, expected[0], after]]).inputs
    torch.testing.assert_close(read_prompt(model, CAPTION, photos[:1]).inputs, validated)


def test_each_question_has_blind_scores_of_its_own(photos: list[Image.Image]) -> None:
    model, other = blip2_tasks(), blip2_tasks()
    model.ask(photos[0], "what?", ["cat", "dog"])
    after = model.ask(photos[0], "who?", ["cat", "dog"]).scores
    assert after == pytest.approx(other.ask(photos[0], "who?", ["cat", "dog"]).scores, abs=1e-5)
    assert after != pytest.approx(model.ask(photos[0], "what?", ["cat", "dog"]).scores, abs=1e-3)
