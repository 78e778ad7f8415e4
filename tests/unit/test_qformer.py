"""The Q-Former on random weights: who sees whom under each mask, caching, photos shared by texts, evidence."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn import masks
from triptych.nn.configs import QFormerConfig
from triptych.nn.qformer import CrossAttention, ImageKeysValues, Past, QFormer, QFormerHeads, QFormerOutput

Q, T, L = 3, 5, 7
CONFIG = QFormerConfig(image_dim=8, dim=16, layers=3, heads=4, mlp_dim=24, queries=Q, vocab_size=20, max_positions=9)


@pytest.fixture(scope="module")
def model() -> QFormer:
    torch.manual_seed(2)
    qformer = QFormer(CONFIG).eval().requires_grad_(False)
    for parameter in qformer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return qformer


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, L, 8)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 20, (2, T))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def moved(a: QFormerOutput, b: QFormerOutput) -> tuple[list[int], list[int]]:
    """The queries and the tokens of the first row that are not bit-equal."""
    return tuple((x[0] != y[0]).any(-1).nonzero().flatten().tolist() for x, y in zip(a[:2], b[:2], strict=True))  # type: ignore[return-value]


EVERY_QUERY, EVERY_TOKEN = list(range(Q)), list(range(T))
# The mask, and what moves when the photo changes, and when word t does.
OBJECTIVES: dict[str, tuple[Callable[[int, int], Tensor], tuple[list[int], list[int]], Callable[[int], object]]] = {
    "itc": (masks.itc, (EVERY_QUERY, []), lambda t: ([], EVERY_TOKEN)),
    "itm": (masks.itm, (EVERY_QUERY, EVERY_TOKEN), lambda t: (EVERY_QUERY, EVERY_TOKEN)),
    "itg": (masks.itg, (EVERY_QUERY, EVERY_TOKEN), lambda t: ([], EVERY_TOKEN[t:])),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_who_sees_whom(model: QFormer, features: Tensor, ids: Tensor, objective: str) -> None:
    draw, by_photo, by_word = OBJECTIVES[objective]
    image, mask = model.image_keys_values(features), draw(Q, T)
    before = model(image, ids, mask)
    assert moved(before, model(model.image_keys_values(features + torch.randn(L, 8)), ids, mask)) == by_photo
    for t in range(T):
        other = ids.clone()
        other[0, t] = ids[0, t] % 19 + 1
        assert moved(before, model(image, other, mask)) == by_word(t)


def test_the_masks_agree_with_separate_passes(model: QFormer, features: Tensor, ids: Tensor) -> None:
    image, everything = model.image_keys_values(features), torch.ones(2, T, dtype=torch.bool)
    alone = model.encode_image(image)
    contrast = model(image, ids, masks.itc(Q, T))
    close(contrast.queries, alone.queries)
    close(contrast.text, model.encode_text(ids, everything).text)
    generation = model(image, ids, masks.itg(Q, T))
    close(generation.queries, alone.queries)
    close(generation.text, model.continue_text(ids, alone.past).text)
    matching = model(image, ids)
    close(matching.queries, model.encode_both(image, ids, everything).queries)
    assert not torch.allclose(matching.queries, alone.queries, atol=1e-3)


def test_padding_changes_nothing(model: QFormer, features: Tensor, ids: Tensor) -> None:
    image, short = model.image_keys_values(features), ids[:, : T - 2]
    mask = torch.arange(T).expand(2, T) < T - 2
    present = mask[:, : T - 2]
    close(model.encode_text(ids, mask).text[:, : T - 2], model.encode_text(short, present).text)
    close(model.encode_both(image, ids, mask).queries, model.encode_both(image, short, present).queries)
    past = model.encode_image(image).past
    close(model.continue_text(ids, past).text[:, : T - 2], model.continue_text(short, past).text)


class Writer:
    """Grounded generation as ``generate`` asks for it."""

    def __init__(self, model: QFormer) -> None:
        self.model, self.heads = model, QFormerHeads(CONFIG).eval()

    def prefill(self, image: ImageKeysValues) -> tuple[Tensor, Past]:
        past = self.model.encode_image(image).past
        return self.step(torch.full((len(past.layers[0].keys),), 19), past)  # 19: [DEC]

    def step(self, ids: Tensor, past: Past) -> tuple[Tensor, Past]:
        output = self.model.continue_text(ids[:, None], past)
        return self.heads.lm_logits(output.text[:, 0], self.model.word_embeddings.weight), output.past


def test_beams_of_a_batch_equal_singles_and_the_whole(model: QFormer, features: Tensor) -> None:
    writer, image = Writer(model), model.image_keys_values(features)
    search = Search(eos=frozenset({1}), beams=3, n_best=3, max_new_tokens=7)
    together = generate(writer, image, search)
    for b in range(2):
        [alone] = generate(writer, image.select(slice(b, b + 1)), search)
        for one, other in zip(alone, together[b], strict=True):
            assert one.ids == other.ids
            ids = torch.tensor([[19, *one.ids, *([1] if one.finished else [])]])
            text = model(image.select(slice(b, b + 1)), ids, masks.itg(Q, ids.shape[1])).text
            logprobs = writer.heads.lm_logits(text, model.word_embeddings.weight).log_softmax(-1)[0, :-1]
            close(logprobs.gather(1, ids[0, 1:, None])[:, 0], torch.tensor(one.logprobs))


@pytest.mark.parametrize("chunks", [(5,), (1, 1, 1, 1, 1), (2, 3), (4, 1), (1, 3, 1)])
def test_cached_equals_uncached(model: QFormer, features: Tensor, ids: Tensor, chunks: tuple[int, ...]) -> None:
    image = model.image_keys_values(features)
    whole, past, parts = model(image, ids, masks.itg(Q, T)).text, model.encode_image(image).past, []
    for chunk in ids.split(chunks, 1):
        output = model.continue_text(chunk, past)
        parts.append(output.text)
        past = output.past
    close(torch.cat(parts, 1), whole)
    assert past.length == Q + T


def test_past_is_reordered_for_beams(model: QFormer, features: Tensor, ids: Tensor) -> None:
    start = model.encode_image(model.image_keys_values(features)).past
    rows = torch.tensor([[0, 0, 0], [1, 1, 1]])
    beams = torch.randint(1, 20, (6, T))
    together = model.continue_text(beams, start.reorder(rows)).text
    for row in range(6):
        one = Past(tuple(type(kv)(kv.keys[[row // 3]], kv.values[[row // 3]]) for kv in start.layers))
        close(together[[row]], model.continue_text(beams[[row]], one).text)


def test_a_photo_serves_all_its_texts(model: QFormer, features: Tensor) -> None:
    image, texts = model.image_keys_values(features), torch.randint(1, 20, (6, T))
    mask = torch.arange(T) < torch.randint(1, T + 1, (6, 1))
    together = model.encode_both(image, texts, mask, with_maps=True)
    for row in range(6):
        one = model.encode_both(image.select(slice(row // 3, row // 3 + 1)), texts[[row]], mask[[row]], with_maps=True)
        close(together.queries[[row]], one.queries)
        for a, b in zip(together.maps, one.maps, strict=True):
            close(a.inner[[row]], b.inner)
            if a.cells is not None and b.cells is not None:
                close(a.cells[[row]], b.cells)
    with pytest.raises(ValueError, match="5 texts for 2 photos"):
        model.encode_both(image, texts[:5], mask[:5])


def test_select_takes_photos_in_any_order(model: QFormer, features: Tensor) -> None:
    image = model.image_keys_values(features)
    rows = torch.tensor([1, 0, 1])
    close(model.encode_image(image.select(rows)).queries, model.encode_image(image).queries[rows])


def test_maps(model: QFormer, features: Tensor, ids: Tensor) -> None:
    image = model.image_keys_values(features)
    output = model(image, ids, with_maps=True)
    assert [maps.cells is not None for maps in output.maps] == [True, False, True]
    for maps in output.maps:
        assert maps.inner.shape == (2, Q + T, Q + T)
        close(maps.inner.sum(-1), torch.ones(2, Q + T))
        if maps.cells is not None:
            assert maps.cells.shape == (2, Q, L)
            close(maps.cells.sum(-1), torch.ones(2, Q))
    assert all((maps.inner[:, Q:, :Q] == 0).all() for maps in model(image, ids, masks.itc(Q, T), with_maps=True).maps)
    whole = model(image, ids, masks.itg(Q, T), with_maps=True).maps
    words = model.continue_text(ids, model.encode_image(image).past, with_maps=True).maps
    for a, b in zip(whole, words, strict=True):
        close(a.inner[:, Q:], b.inner)
    assert model(image, ids).maps == ()


def test_where_the_cross_attention_stands(model: QFormer) -> None:
    image = model.image_keys_values(torch.randn(1, L, 8))
    assert [kv is not None for kv in image.layers] == [True, False, True]


def test_queries_have_no_positions_and_words_do(model: QFormer, features: Tensor, ids: Tensor) -> None:
    image = model.image_keys_values(features)
    queries = model.encode_image(image).queries
    order = torch.tensor([2, 0, 1])
    tokens = model.query_tokens.data
    try:
        model.query_tokens.data = tokens[order]
        close(model.encode_image(image).queries, queries[:, order])
    finally:
        model.query_tokens.data = tokens
    text, reversed_text = (model.encode_text(x, torch.ones(2, T)).text for x in (ids, ids.flip(1)))
    assert not torch.allclose(text, reversed_text.flip(1), atol=1e-3)


def test_long_texts_are_refused(model: QFormer, features: Tensor) -> None:
    longest = torch.ones(2, 9, dtype=torch.long)
    past = model.encode_image(model.image_keys_values(features)).past
    past = model.continue_text(longest, past).past
    with pytest.raises(InputError, match="10 word pieces: the Q-Former reads 9"):
        model.continue_text(longest[:, :1], past)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    qformer = QFormer(QFormerConfig(image_dim=64))
    assert qformer.query_tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert qformer.query_tokens.shape == (32, 384)
    for layer in qformer.layers:
        assert torch.equal(layer.query_mlp.up.weight, layer.text_mlp.up.weight)  # type: ignore[union-attr,arg-type]
        assert layer.query_mlp.up.weight is not layer.text_mlp.up.weight


def test_published_size() -> None:
    """As transformers counts BLIP-2's, but for the temperature and the language-model head that it has lost."""
    lost = 1 + 30523 + (768 * 768 + 768) + 2 * 768
    with torch.device("meta"):
        parts = QFormer(QFormerConfig.bert_base()), QFormerHeads(QFormerConfig.bert_base())
        second_stage = QFormer(QFormerConfig.bert_base(vocab_size=0))
    assert sum(p.numel() for part in parts for p in part.parameters()) == 186_080_002 + lost
    assert sum(p.numel() for p in second_stage.parameters()) == 105_162_240


def test_every_weight_is_trained_by_the_three_objectives(features: Tensor, ids: Tensor) -> None:
    """And the photo's features get gradients too, so that what makes them can be trained."""
    torch.manual_seed(4)
    model, heads = QFormer(CONFIG), QFormerHeads(CONFIG, feature_dim=6)
    features.requires_grad_()
    image, mask = model.image_keys_values(features), torch.ones(2, T)
    alone = model.encode_image(image)
    contrast = heads.image_features(alone.queries).amax(1) @ heads.text_features(model.encode_text(ids, mask).text).T
    match = heads.itm_logits(model.encode_both(image, ids, mask).queries)
    words = heads.lm_logits(model.continue_text(ids, alone.past).text, model.word_embeddings.weight)
    loss = (contrast / heads.temperature).square().sum() + match.square().sum() + words.square().sum()
    loss.backward()
    for module in (model, heads):
        for name, parameter in module.named_parameters():
            if name.endswith("key.bias"):  # the same for every key, so that it moves no weight
                continue
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert features.grad is not None and (features.grad.abs().sum(-1) > 0).all()


def test_cross_attention_is_the_papers(features: Tensor) -> None:
    """BLIP-2 section 3.1: norm(x + softmax(Q K^T / sqrt(d)) V), head by head, queries at the photo's cells."""
    layer = CrossAttention(CONFIG).eval()
    x, attention = torch.randn(2, Q, 16), layer.attention
    query, key, value = attention.query(x), attention.key(features), attention.value(features)
    heads = [slice(4 * h, 4 * h + 4) for h in range(4)]
    each = [(query[..., h] @ key[..., h].mT / 2).softmax(-1) @ value[..., h] for h in heads]
    close(layer(x, attention.keys_values(features)), layer.norm(x + attention.out(torch.cat(each, -1))))


def test_heads(model: QFormer) -> None:
    heads = QFormerHeads(CONFIG, feature_dim=6)
    queries, text = torch.randn(2, Q, 16), torch.randn(2, T, 16)
    close(heads.image_features(queries).norm(dim=-1), torch.ones(2, Q))
    assert torch.equal(heads.text_features(text), heads.text_features(text[:, :1]))
    close(heads.itm_logits(queries), torch.stack([heads.itm_head(queries[:, q]) for q in range(Q)]).mean(0))
    assert heads.lm_logits(text, model.word_embeddings.weight).shape == (2, T, 20)
    assert heads.temperature.item() == pytest.approx(0.07)


def test_dropout_only_in_training(features: Tensor) -> None:
    model = QFormer(CONFIG)
    image: ImageKeysValues = model.image_keys_values(features)
    assert not torch.equal(model.encode_image(image).queries, model.encode_image(image).queries)
    model.eval()
    assert torch.equal(model.encode_image(image).queries, model.encode_image(image).queries)
