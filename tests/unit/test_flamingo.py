"""Flamingo: gates, who looks at which picture, pictures that come later, chunks, batches."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn import masks
from triptych.nn.cache import KVCache
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import NO_PICTURE, Flamingo, FlamingoState, flamingo_prompt

IMAGE, PAD, WORDS, R = 9, 0, 20, 3


class Pixels(nn.Module):
    dim, grid = 5, (2, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values


def build(look: Literal["last", "all"] = "last", **settings: Any) -> Flamingo:
    torch.manual_seed(0)
    lm = Decoder(DecoderConfig(WORDS, dim=12, layers=4, heads=2, ffn_dim=20, kv_heads=1))
    sizes = {"dim": 8, "latents": R, "resampler_layers": 2, "heads": 2, "head_dim": 4, "ffn_factor": 2, "every": 2}
    model = Flamingo(FlamingoConfig(5, IMAGE, look=look, **(sizes | settings)), Pixels(), lm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4).add_(parameter.ndim == 1)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["last", "all"])
def model(request: pytest.FixtureRequest) -> Flamingo:
    return build(request.param)


def tokens(model: Flamingo, pictures: int, seed: int = 1) -> Tensor:
    features = torch.randn(pictures, 4, 5, generator=torch.Generator().manual_seed(seed))
    return model.resampler(features, torch.arange(1, pictures + 1))


def text(length: int, pictures: tuple[int, ...], seed: int = 2) -> Tensor:
    """``[1, length]`` with pictures at these positions."""
    ids = torch.randint(1, IMAGE, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[0, list(pictures)] = IMAGE
    return ids


def state_of(model: Flamingo, rows: int = 1) -> FlamingoState:
    return FlamingoState.empty(KVCache(model.lm.config.layers), rows, torch.device("cpu"))


def logits(model: Flamingo, ids: Tensor, visual_tokens: Tensor) -> Tensor:
    return model.lm.logits(model(ids, model.media(visual_tokens, [len(visual_tokens)])))


def test_shut_gates_leave_the_language_model_as_it_is(model: Flamingo) -> None:
    for block in model.xattn:
        nn.init.zeros_(block.attn_gate)  # type: ignore[arg-type]
        nn.init.zeros_(block.ffw_gate)  # type: ignore[arg-type]
    ids = text(7, (1, 4))
    assert torch.equal(logits(model, ids, tokens(model, 2)), model.lm.logits(model.lm(ids)))
    assert model.gates() == [(0.0, 0.0)] * 2


def test_a_new_model_has_its_gates_shut_and_its_frozen_parts_frozen() -> None:
    lm = Decoder(DecoderConfig(WORDS, dim=12, layers=5, heads=2, ffn_dim=20))
    model = Flamingo(FlamingoConfig(5, IMAGE, dim=8, every=2), Pixels(), lm).train()
    assert model.gates() == [(0.0, 0.0)] * 2  # before blocks 2 and 4 of 5
    assert model.resampler.training and not model.lm.training and not model.vision_encoder.training
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"resampler", "xattn"}


def test_every_part_of_the_bridge_counts(model: Flamingo) -> None:
    ids, visual = text(6, (0, 3)), tokens(model, 2)
    before = logits(model, ids, visual)
    for name, parameter in [*model.xattn.named_parameters()]:
        kept = parameter.clone()
        parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(logits(model, ids, visual), before), name
        parameter.copy_(kept)
    for name, parameter in [*model.resampler.named_parameters()]:
        kept = parameter.clone()
        parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(tokens(model, 2), visual), name
        parameter.copy_(kept)


def test_a_gated_block_adds_its_layers_times_the_tanh_of_their_gates(model: Flamingo) -> None:
    """Flamingo section 2.2: y + tanh(attn_gate) attention(y, X), then y + tanh(ffw_gate) FFW(y)."""
    media, x = model.media(tokens(model, 2), [2]), torch.randn(1, 4, 12)
    mask = masks.media(torch.tensor([[0, 1, 1, 2]]), media.numbers, R, model.config.look)
    block: Any = model.xattn[0]
    block.attn_gate.fill_(1.3)
    block.ffw_gate.fill_(-0.8)
    y = x + math.tanh(1.3) * block.attention(block.norm(x), media.blocks[0], mask)
    torch.testing.assert_close(block(x, media.blocks[0], mask), y + math.tanh(-0.8) * block.ffw(y))
    torch.testing.assert_close(block(x, None, None), x + math.tanh(-0.8) * block.ffw(x))


def test_latents_attend_to_the_features_and_to_one_another(model: Flamingo) -> None:
    """Flamingo section 2.1: the keys and values are those of the features followed by those of the latents."""
    layer: Any = model.resampler.layers[0]
    latents, features, maps = torch.randn(1, R, 8), torch.randn(1, 5, 8), list[Tensor]()
    outputs = layer(latents, features, maps)
    queries = layer.latents_norm(latents)
    keys_values = layer.attention.keys_values(torch.cat([layer.media_norm(features), queries], 1))
    attended = latents + layer.attention(queries, keys_values)
    torch.testing.assert_close(outputs, attended + layer.ffw(attended))
    assert maps[0].shape == (1, 2, R, 5 + R)
    edited = torch.cat([torch.randn(1, 1, 8), latents[:, 1:]], 1)
    assert (layer(edited, features) != outputs).any(-1).all()  # the first latent changes all others


def test_text_looks_at_the_pictures_before_it(model: Flamingo) -> None:
    """Editing a picture changes no text before it; of the text after the next picture it changes what looks at all, through the gates."""
    ids, visual = text(9, (2, 5)), tokens(model, 2)
    media = model.media(visual, [2])
    time = (ids == IMAGE).cumsum(1)
    for picture, changed in (
        (0, {"last": range(2, 5), "all": range(2, 9)}),
        (1, {"last": range(5, 9), "all": range(5, 9)}),
    ):
        edited = visual.clone()
        edited[picture] += 1
        other = model.media(edited, [2])
        x = torch.randn(1, 9, 12)
        mask = masks.media(time, media.numbers, R, model.config.look)
        block: Any = model.xattn[0]
        moved = (block(x, media.blocks[0], mask) != block(x, other.blocks[0], mask)).any(-1)[0]
        assert moved.tolist() == [i in changed[model.config.look] for i in range(9)]
        before, after = logits(model, ids, visual), logits(model, ids, edited)
        first = (2, 5)[picture]
        assert torch.equal(before[:, :first], after[:, :first])
        assert not torch.allclose(before[:, first:], after[:, first:])


def test_text_without_a_picture_before_it_gets_exactly_nothing(model: Flamingo) -> None:
    media = model.media(tokens(model, 1), [1])
    mask = masks.media(torch.tensor([[0, 0, 1]]), media.numbers, R, model.config.look)
    block: Any = model.xattn[0]
    outputs = block.attention(torch.randn(1, 3, 12), media.blocks[0], mask)
    assert not outputs[:, :2].any() and outputs[:, 2].all()


@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (2, 7), (3, 1, 5), (6, 3), (4, 2, 2, 1)])
def test_pictures_that_come_later_change_nothing(model: Flamingo, chunks: tuple[int, ...]) -> None:
    """Text in chunks, each picture given just before the chunk that holds its place, equals all at once."""
    ids, visual = text(9, (0, 4, 7)), tokens(model, 3)
    whole, state, given, outputs, start = logits(model, ids, visual), state_of(model), 0, [], 0
    for length in chunks:
        part = ids[:, start : start + length]
        new = int((part == IMAGE).sum())
        model.add_pictures(state, visual[given : given + new], [new])
        outputs.append(model.lm.logits(model(part, state=state)))
        given, start = given + new, start + length
    torch.testing.assert_close(torch.cat(outputs, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_batch_answers_as_its_rows(model: Flamingo) -> None:
    """Rows of several lengths with several numbers of pictures, one without any."""
    rows = [text(8, (0, 3, 6), seed=3), text(5, (1,), seed=4), text(4, (), seed=5), text(6, (0, 5), seed=6)]
    counts = [int((row == IMAGE).sum()) for row in rows]
    visual = [tokens(model, count, seed=count) if count else torch.zeros(0, R, 8) for count in counts]
    prompt = flamingo_prompt([row[0].tolist() for row in rows], torch.cat(visual), counts, PAD)
    for search in (Search(frozenset(), max_new_tokens=6), Search(frozenset(), max_new_tokens=6, beams=3)):
        together = generate(model, prompt, search)
        for row, pictures, count, outputs in zip(rows, visual, counts, together, strict=True):
            (alone,) = generate(model, flamingo_prompt([row[0].tolist()], pictures, [count], PAD), search)
            assert alone[0].ids == outputs[0].ids
            assert alone[0].logprobs == pytest.approx(outputs[0].logprobs, abs=5e-5)


def test_steps_equal_the_whole_text(model: Flamingo) -> None:
    ids, visual = text(10, (1, 3)), tokens(model, 2)
    whole = logits(model, ids, visual)
    first, state = model.prefill(flamingo_prompt([ids[0, :5].tolist()], visual, [2], PAD))
    outputs = [first]
    for i in range(5, 10):
        step, state = model.step(ids[:, i], state)
        outputs.append(step)
    torch.testing.assert_close(torch.stack(outputs, 1), whole[:, 4:], atol=1e-5, rtol=1e-5)


def test_pictures_given_before_their_places_are_seen_in_time(model: Flamingo) -> None:
    """All pictures at once, the text token by token: each is attended to from its own position on."""
    ids, visual = text(7, (0, 3, 5)), tokens(model, 3)
    state = state_of(model)
    model.add_pictures(state, visual, [3])
    outputs = [model.lm.logits(model(ids[:, i : i + 1], state=state)) for i in range(7)]
    torch.testing.assert_close(torch.cat(outputs, 1), logits(model, ids, visual), atol=1e-5, rtol=1e-5)


def test_going_back_forgets_text_and_pictures(model: Flamingo) -> None:
    ids, visual = text(8, (1, 5)), tokens(model, 2)
    state = state_of(model)
    model.add_pictures(state, visual[:1], [1])
    model(ids[:, :4], state=state)
    model.add_pictures(state, tokens(model, 1, seed=9), [1])
    model(text(3, (0,), seed=8), state=state)
    state.truncate(4, pictures=1)
    model.add_pictures(state, visual[1:], [1])
    outputs = model.lm.logits(model(ids[:, 4:], state=state))
    torch.testing.assert_close(outputs, logits(model, ids, visual)[:, 4:], atol=1e-5, rtol=1e-5)


def test_places_and_frames_have_embeddings() -> None:
    model = build(max_pictures=3, max_frames=2)
    features = torch.randn(1, 4, 5)
    first, second = (model.resampler(features, torch.tensor([i])) for i in (1, 2))
    assert not torch.allclose(first, second)
    video, place = torch.randn(1, 2, 4, 5), torch.tensor([1])
    assert not torch.allclose(model.resampler(video, place), model.resampler(video.flip(1), place), atol=1e-3)
    assert model.resampler.frame_embeddings is not None
    model.resampler.frame_embeddings[1] = model.resampler.frame_embeddings[0]
    torch.testing.assert_close(model.resampler(video, place), model.resampler(video.flip(1), place))
    with pytest.raises(InputError, match="3 at most"):
        model.resampler(features, torch.tensor([4]))
    with pytest.raises(InputError, match="2 at most"):
        model.resampler(torch.randn(1, 3, 4, 5), torch.tensor([1]))


def test_media_of_ragged_rows() -> None:
    model = build()
    media = model.media(tokens(model, 3), [1, 0, 2])
    assert media.numbers.tolist() == [[1, NO_PICTURE], [NO_PICTURE, NO_PICTURE], [1, 2]]
    single = model.media(tokens(model, 3)[1:], [2])
    torch.testing.assert_close(media.blocks[1].keys[2], single.blocks[1].keys[0])


@pytest.mark.parametrize("image_tokens", [0, 1, 3])
def test_pictures_and_image_tokens_must_match(model: Flamingo, image_tokens: int) -> None:
    ids = text(5, tuple(range(image_tokens)))[0].tolist()
    with pytest.raises(InputError, match=f"2 pictures for {image_tokens} image tokens"):
        model.prefill(flamingo_prompt([ids], tokens(model, 2), [2], PAD))
    with pytest.raises(InputError, match="give one for each"):
        model.media(tokens(model, 2), [1])


def test_rows_of_other_inputs_take_their_pictures_along(model: Flamingo) -> None:
    """Of four inputs two leave, and as many rows as before go on: two of each that stays."""
    prompt = flamingo_prompt([text(4, (0,), seed=i)[0].tolist() for i in range(4)], tokens(model, 4), [1] * 4, PAD)
    _, state = model.prefill(prompt)
    media = state.media
    assert media is not None
    going = state.reorder(torch.tensor([[0, 0], [2, 2]]))
    assert going.media is not None
    assert torch.equal(going.media.blocks[0].keys, media.blocks[0].keys[[0, 0, 2, 2]])
    again = going.reorder(torch.tensor([[1, 0], [2, 2]]))
    assert again.media is going.media  # within an input nothing moves


def test_gated_blocks_must_fit_the_language_model() -> None:
    with pytest.raises(InputError, match="every=5 leaves no gated block"):
        build(every=5)
