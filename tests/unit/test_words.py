"""The warm start: which words count, what a picture's visual tokens propose, and what the way into the language model begins by saying."""

from pathlib import Path

import pytest
import torch
from tiny_blip2 import byte_tokenizer
from tiny_flamingo import tiny_flamingo

from triptych.data import Photo
from triptych.train.words import (
    CaptionWords,
    PictureReader,
    WordObjective,
    caption_text,
    initialise_gated_blocks,
    initialise_projection,
    residual_sizes,
)


def photo(i: int, *captions: str) -> Photo:
    return Photo(str(i), "train", captions, {}, Path("none"))


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    kinds = [("a dog runs", "dog"), ("a cat runs", "the cat"), ("a bird runs", "bird here")]
    return [photo(i, *kinds[i % 3]) for i in range(30)]


class Words:
    """A tokenizer of whole words."""

    known: dict[str, int] = {}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [self.known.setdefault(word, len(self.known) + 1) for word in text.split()]


def test_rare_words_count_and_common_ones_do_not(photos: list[Photo]) -> None:
    words = Words()
    found = CaptionWords(photos, words)  # type: ignore[arg-type]
    kept = {word for word, i in words.known.items() if i in found.ids.tolist()}
    assert kept == set()  # each is in more than a quarter of the captions
    many = [photo(100 + i, f"a {'sheep' if i < 6 else 'cow'} stands", *(["rare"] if i < 2 else [])) for i in range(40)]
    many += [photo(200 + i, "a motorcycle") for i in range(6)]  # a class that few-shot tests ask about
    found = CaptionWords([*photos, *many], words)  # type: ignore[arg-type]
    kept = {word for word, i in words.known.items() if i in found.ids.tolist()}
    assert kept == {"dog", "cat", "bird", "the", "here", "sheep"}
    assert found.targets.shape == (76, 6)
    place = found.ids.tolist().index(words.known["dog"])
    assert found.targets[0, place] == 1 and not found.targets[1, place]
    assert not found.targets[-1].any()  # nothing that counts
    torch.testing.assert_close(found.targets.sum(1)[:36], torch.ones(36))


def test_the_loss_is_of_the_mixture_of_all_visual_tokens() -> None:
    model = tiny_flamingo().model
    words = CaptionWords([photo(i, "dcb"[i % 3]) for i in range(60)], Words())  # type: ignore[arg-type]
    words.ids, words.targets = torch.tensor([40, 41, 42]), torch.rand(60, 3)
    numbers = torch.ones(4, dtype=torch.long)
    embeddings = model.lm.embedding.weight[words.ids]
    reader = PictureReader(model.resampler, lambda x: model.resampler(x, numbers), 8)
    objective = WordObjective(reader, embeddings, words)
    features, targets = torch.randn(4, 9, 5), torch.rand(4, 3)
    directions = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=-1)
    expected = 0.0
    for picture, target in zip(features, targets, strict=True):
        proposed = torch.nn.functional.normalize(objective.head(model.resampler(picture[None], numbers[:1]))[0], dim=-1)
        chances = (objective.scale * proposed @ directions.T + objective.bias).softmax(-1).mean(0)
        expected -= float((target * chances.log()).sum().detach()) / 4
    assert float(objective(features, targets).detach()) == pytest.approx(expected, rel=1e-5)


def test_an_opening_gate_says_what_the_head_says() -> None:
    """With even attention, a block's output is the head of the mean token, at the size of the text there."""
    model = tiny_flamingo().model
    tokens, head = torch.randn(6, 3, 8), torch.randn(16, 8)
    text = torch.randint(5, 200, (4, 6))
    initialise_gated_blocks(model, head, tokens, text)
    sizes = residual_sizes(model.lm, text)
    said = (tokens @ head.T).square().mean().sqrt()
    for block, size in zip(model.xattn, (sizes[1], sizes[3]), strict=True):
        attention = block.attention
        torch.nn.init.zeros_(attention.query.weight)
        found = attention(torch.randn(6, 1, 16), attention.keys_values(tokens))[:, 0]
        torch.testing.assert_close(found, tokens.mean(1) @ head.T * size / said, atol=1e-4, rtol=1e-4)


def test_a_soft_prompt_begins_as_words_do() -> None:
    """Around the words' mean, as far off as they are, in the directions that the head gives."""
    projection, head = torch.nn.Linear(6, 10), torch.randn(10, 6)
    queries, embeddings = torch.randn(5, 3, 6), torch.randn(40, 10) * 0.2 + torch.linspace(-1, 1, 10)
    initialise_projection(projection, head, queries, embeddings)
    away = (projection(queries) - embeddings.mean(0)).detach()
    words_away = embeddings - embeddings.mean(0)
    assert away.square().mean() == pytest.approx(float(words_away.square().mean()), rel=1e-4)
    torch.testing.assert_close(torch.cosine_similarity(away, queries @ head.T, dim=-1), torch.ones(5, 3))


def test_sizes_are_of_what_enters_each_block() -> None:
    model = tiny_flamingo().model
    text = torch.randint(5, 200, (2, 6))
    sizes = residual_sizes(model.lm, text)
    assert len(sizes) == 4
    assert sizes[0] == pytest.approx(float(model.lm.embedding.weight[text[:, 1:]].square().mean().sqrt()), rel=1e-5)


def test_beginnings_of_captions_are_of_one_length() -> None:
    tokenizer = byte_tokenizer()
    found = caption_text([photo(0, "a long caption"), photo(1, "short"), photo(2, "another long one")], tokenizer)
    assert found.tolist() == [tokenizer.encode(" a long caption")[:8], tokenizer.encode(" another long one")[:8]]
    assert caption_text([photo(0, "x")], tokenizer).shape == (1, 8)
