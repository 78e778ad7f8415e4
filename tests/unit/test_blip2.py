"""BLIP-2 put together: the ways through the model, and its training objective, on tiny random weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_blip2 import tiny_blip2
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn import masks
from triptych.nn.configs import DecoderConfig, QFormerConfig
from triptych.nn.decoder import Decoder
from triptych.nn.qformer import ImageKeysValues, QFormerOutput
from triptych.systems.blip2 import Blip2, GroundedText
from triptych.systems.blip2_losses import itc_similarity, itm_pairs
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import IGNORED
from triptych.train.blip2.batches import PICTURE, Agreement, AnswerRows, Blip2Items, CaptionPieces
from triptych.train.blip2.objective import Blip2Objective, Processes
from triptych.train.blip2.prompts import CaptionPrompt
from triptych.train.blip2.recipe import Blip2Recipe
from triptych.train.crops import crop_cells
from triptych.train.recipe import make_recipe, recipe_with

QUERIES, WORDS, TOKENS = 3, 40, 50


class Pixels(nn.Module):
    """An encoder whose cells are the photo's pixels."""

    dim, grid, image_size = 3, (2, 2), 2

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.flatten(2).transpose(1, 2)


def random_(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3).add_(parameter.ndim == 1)
    return module


@pytest.fixture
def model() -> Blip2:
    torch.manual_seed(0)
    qformer = QFormerConfig(3, dim=16, layers=4, heads=2, mlp_dim=24, queries=QUERIES, vocab_size=WORDS, dropout=0.0)
    lm = Decoder(DecoderConfig(TOKENS, dim=12, layers=2, heads=2, ffn_dim=20, kv_heads=1))
    return random_(Blip2(Blip2Config(qformer, feature_dim=8), Pixels(), lm)).eval()


INSTRUCTION = torch.tensor([[1, 5, 6, 2]]), torch.ones(1, 4, dtype=torch.bool)
PROMPT = CaptionPrompt(after=(7, 8), instruction=INSTRUCTION)


def objective(model: Blip2, processes: Processes = Processes(), **terms: float) -> Blip2Objective:  # noqa: B008
    recipe = make_recipe(Blip2Recipe, {"stage": 3, "weights": terms, "label_smoothing": 0.0})
    return Blip2Objective(model, recipe, WORDS - 1, PROMPT, processes)


def test_frozen_parts_stay_in_eval_and_untrained(model: Blip2) -> None:
    model.train()
    assert model.qformer.training and not model.lm.training and not model.vision_encoder.training
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"vision_norm", "qformer", "heads", "projection"}


def test_the_soft_prompt_is_a_linear_map_of_each_query(model: Blip2) -> None:
    """BLIP-2 section 3.2: W_p E + b_p."""
    queries, projection = torch.randn(2, QUERIES, 16), dict(model.projection.named_parameters())  # type: ignore[union-attr]
    expected = torch.einsum("eq,bnq->bne", projection["weight"], queries) + projection["bias"]
    torch.testing.assert_close(model.soft_prompt(queries), expected)


def test_branches_of_one_row_learn_what_separate_rows_learn(model: Blip2) -> None:
    soft = torch.randn(2, QUERIES, 12, requires_grad=True)
    captions = torch.randint(TOKENS, (2, 3, 5))
    captions[0, 1, 3:] = IGNORED
    captions[1, 2, 2:] = IGNORED
    shared = objective(model, caption=1.0).caption_loss(soft, captions)
    losses = []
    for photo in range(2):
        for ids in captions[photo]:
            ids = ids[ids != IGNORED]
            text = torch.cat([torch.tensor([7, 8]), ids[:-1]])
            row = torch.cat([soft[photo], model.lm.embed(text)])[None]
            logits = model.lm.logits(model.lm(row))[0, QUERIES + 1 :]
            losses.append(F.cross_entropy(logits, ids, reduction="none"))
    apart = torch.cat(losses).mean()
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(loss, soft)[0] for loss in (shared, apart))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def question_rows(pictures: int, seed: int = 0) -> AnswerRows:
    """One prompt with ``pictures`` photos, and one without any."""
    torch.manual_seed(seed)
    pieces = [PICTURE] * QUERIES
    ids = [5, *[x for n in range(pictures) for x in (*pieces, 10 + n)], 20, 21]
    alone = [5, 20, 21]
    width = len(ids)
    return AnswerRows(
        torch.arange(pictures),
        torch.randint(WORDS, (pictures, 4)),
        torch.ones(pictures, 4, dtype=torch.bool),
        torch.tensor([ids, alone + [0] * (width - 3)]),
        torch.arange(width) < torch.tensor([[width], [3]]),
        torch.tensor([[IGNORED] * (width - 2) + [20, 21], [IGNORED, 20, 21] + [IGNORED] * (width - 3)]),
    )


def test_every_photo_and_its_question_reach_the_answer(model: Blip2) -> None:
    features, rows = torch.randn(2, 4, 3), question_rows(2)
    ask = objective(model, question=1.0)
    loss = ask.answer_loss(model.image_keys_values(features), rows)
    for photo in range(2):
        other = features.clone()
        other[photo] = torch.randn(4, 3)
        assert not torch.isclose(ask.answer_loss(model.image_keys_values(other), rows), loss)
    assert not torch.isclose(
        ask.answer_loss(model.image_keys_values(features.flip(0)), rows), loss
    )  # which is left matters
    question = rows._replace(question_ids=(rows.question_ids + 1) % WORDS)
    assert not torch.isclose(ask.answer_loss(model.image_keys_values(features), question), loss)


def test_answer_loss_reads_the_soft_prompts_in_their_places(model: Blip2) -> None:
    features, rows = torch.randn(2, 4, 3), question_rows(2)
    loss = objective(model, question=1.0).answer_loss(model.image_keys_values(features), rows)
    queries = model.read_photos(model.image_keys_values(features), (rows.question_ids, rows.question_mask)).queries
    soft = model.soft_prompt(queries)
    ids = rows.input_ids[0]
    left, right, begin = soft[0], soft[1], torch.tensor([5])
    prompt = model.prompt([[begin, left, ids[4:5], right, ids[8:11]], [begin, torch.tensor([20, 21])]])
    hidden = model.lm(prompt.inputs, prompt.padding_mask)
    logits = model.lm.logits(hidden[:, -2:])
    expected = F.cross_entropy(logits.flatten(0, 1), torch.tensor([20, 21, 20, 21]))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_prompts_equals_its_rows(model: Blip2) -> None:
    image = model.image_keys_values(torch.randn(3, 4, 3))
    soft = model.soft_prompt(model.read_photos(image).queries)
    rows = [
        [soft[0], torch.tensor([1, 2])],
        [torch.tensor([3]), soft[1], torch.tensor([4]), soft[2], torch.tensor([5])],
    ]
    search = Search(frozenset({0}), max_new_tokens=6, beams=2, n_best=2)
    together = generate(model.lm, model.prompt(rows), search)
    apart = [generate(model.lm, model.prompt([row]), search)[0] for row in rows]
    assert [[h.ids for h in found] for found in together] == [[h.ids for h in found] for found in apart]


def test_grounded_text_steps_equal_one_pass(model: Blip2) -> None:
    image = model.image_keys_values(torch.randn(2, 4, 3))
    dec = WORDS - 1
    writer = GroundedText(model, dec)
    ids = torch.randint(WORDS - 1, (2, 5))
    logits, state = writer.prefill(image)
    steps = [logits]
    for t in range(4):
        logits, state = writer.step(ids[:, t], state)
        steps.append(logits)
    whole = torch.cat([torch.full((2, 1), dec), ids[:, :4]], 1)
    mask = masks.itg(QUERIES, 5)
    text = model.qformer(image, whole, mask).text
    torch.testing.assert_close(
        torch.stack(steps, 1), model.heads.lm_logits(text, model.qformer.word_embeddings.weight), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_match_scores_by_name(model: Blip2, weight: float) -> None:
    model.config = replace(model.config, contrast_weight=weight)
    with torch.no_grad():
        model.heads.temperature.fill_(0.2)
    image = model.image_keys_values(torch.randn(2, 4, 3))
    ids, mask = torch.randint(WORDS, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    queries = model.read_photos(image).queries
    scores = model.match(image, queries, model.text_features(ids, mask), ids, mask)
    assert scores.itc_cosine.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(scores.itc_scaled * 0.2, scores.itc_cosine)
    with torch.no_grad():
        model.heads.temperature.fill_(7.0)  # matching divides by what training divides by: 0.5 at most
    scaled = model.match(image, queries, model.text_features(ids, mask), ids, mask).itc_scaled
    torch.testing.assert_close(scaled, 2 * scores.itc_cosine)
    pair = model.qformer.encode_both(image.select(torch.tensor([1])), ids[1:2, :3], mask[1:2, :3])
    logits = model.heads.itm_logits(pair.queries)[0]
    torch.testing.assert_close(scores.itm_prob[1, 1], logits.softmax(0)[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.rerank[1, 1], logits[1] + weight * scores.itc_cosine[1, 1], rtol=1e-4, atol=1e-5)


def batch(photos: int, k: int) -> Blip2Items:
    torch.manual_seed(photos)
    ids = torch.randint(WORDS - 1, (photos * k, 6))
    return Blip2Items(
        torch.randn(photos, 4, 3),
        torch.arange(photos),
        CaptionPieces(ids, torch.ones_like(ids, dtype=torch.bool)),
        None,
        None,
        None,
    )


def with_agreement(batch: Blip2Items) -> Blip2Items:
    """Random directions of 5 words."""
    assert batch.captions is not None
    vectors = [F.normalize(torch.randn(len(x), 5), dim=-1) for x in (batch.image_features, batch.captions.input_ids)]
    return batch._replace(agreement=Agreement(*vectors))


def photos_read(model: Blip2, batch: Blip2Items) -> tuple[ImageKeysValues, QFormerOutput]:
    image = model.image_keys_values(batch.image_features)
    return image, model.read_photos(image)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_processes_together_learn_what_one_learns(model: Blip2, weight: float) -> None:
    """Two processes with half of the photos each: the mean of their losses for contrast is the loss of one process with all."""
    k, whole = 2, with_agreement(batch(6, 2))
    assert whole.agreement is not None
    alone = objective(model, itc=1.0)
    alone.recipe = recipe_with(alone.recipe, {"agreement": weight})
    expected = alone.first_stage(*photos_read(model, whole), whole, seed=1)["itc"]
    halves = []
    with torch.no_grad():
        image_features = model.heads.image_features(
            model.read_photos(model.image_keys_values(whole.image_features)).queries
        )
        text_features = model.text_features(*whole.captions)
    everything = {3: whole.image_ids, (3, QUERIES, 8): image_features, (3 * k, 8): text_features}
    everything |= {(3, 5): whole.agreement.photos, (3 * k, 5): whole.agreement.captions}
    for rank in range(2):
        part = slice(3 * rank, 3 * rank + 3)
        rows = slice(3 * k * rank, 3 * k * rank + 3 * k)
        own = Blip2Items(
            whole.image_features[part],
            whole.image_ids[part],
            CaptionPieces(*(x[rows] for x in whole.captions)),
            None,
            None,
            None,
            Agreement(whole.agreement.photos[part], whole.agreement.captions[rows]),
        )
        shapes = lambda x: everything[x.shape[0] if x.ndim == 1 else tuple(x.shape)]  # noqa: E731
        one = objective(model, Processes(2, rank, shapes), itc=1.0)
        one.recipe = alone.recipe
        halves.append(one.first_stage(*photos_read(model, own), own, seed=1)["itc"])
    torch.testing.assert_close(torch.stack(halves).mean(), expected, rtol=1e-5, atol=1e-6)


def test_contrast_learns_what_the_agreement_lacks(model: Blip2) -> None:
    """The similarity of a photo and a caption is the cosine of contrast plus the weighted agreement, over the temperature."""
    whole = with_agreement(batch(3, 2))
    assert whole.agreement is not None and whole.captions is not None
    found = objective(model, itc=1.0)
    found.recipe = recipe_with(found.recipe, {"agreement": 0.5})
    output = photos_read(model, whole)[1]
    contrast = found.contrast(output, whole.captions, whole.image_ids, whole.agreement)
    cosine = itc_similarity(model.heads.image_features(output.queries), model.text_features(*whole.captions))
    agreement = torch.tensor(
        [[sum(a * b for a, b in zip(photo, text, strict=True)) for text in whole.agreement.captions.tolist()]
         for photo in whole.agreement.photos.tolist()]
    )  # fmt: skip
    expected = (cosine + 0.5 * agreement) / model.heads.bounded_temperature
    torch.testing.assert_close(contrast.image_to_text, expected)
    torch.testing.assert_close(contrast.text_to_image, expected.T)


def test_a_share_of_the_photos_is_matched_with_negatives_of_all(model: Blip2) -> None:
    """Of six photos three are matched: their own texts first, then a photo and a text of others, drawn as for all six."""
    whole = batch(6, 1)
    half = objective(model, itm=1.0)
    half.recipe = recipe_with(half.recipe, {"itm_photos": 0.5, "easy_negatives": 0.0})
    image, queries = photos_read(model, whole)
    temperature = model.heads.temperature.clamp(0.001, 0.5)
    features = model.heads.image_features(queries.queries)
    similarity = itc_similarity(features, model.text_features(*whole.captions)) / temperature
    drawn = itm_pairs(
        similarity, similarity.T, whole.image_ids, whole.image_ids, generator=torch.Generator().manual_seed(5)
    )
    chosen = torch.tensor([0, 1, 2, 6, 7, 8, 12, 13, 14])
    photos, texts = (rows[chosen] for rows in drawn)
    assert photos[:3].tolist() == texts[:3].tolist() == [0, 1, 2]
    ids, shown = (x[texts] for x in whole.captions)
    logits = model.heads.itm_logits(model.qformer.encode_both(image.select(photos), ids, shown).queries)
    expected = F.cross_entropy(logits, torch.tensor([1] * 3 + [0] * 6))
    torch.testing.assert_close(half.first_stage(image, queries, whole, seed=5)["itm"], expected)


def test_terms_are_what_the_stage_asks_for(model: Blip2) -> None:
    found = objective(model, itc=1.0, itm=1.0, itg=1.0)
    loss = found(batch(4, 2), 0)
    assert found.last.keys() == {"itc", "itm", "itg"}
    assert sum(found.last.values()) == pytest.approx(loss.item(), rel=1e-5)
    assert replace(found.recipe, weights=None, stage=1).terms.keys() == {"itc", "itm", "itg"}


def test_cells_are_drawn_from_a_window() -> None:
    features = torch.arange(100.0)[None, :, None].expand(50, 100, 1)
    drawn = crop_cells(features, (10, 10), 0.4, 0.7, seed=3)[..., 0]
    assert drawn.shape == (50, 40)
    for cells in drawn.long():
        assert len(cells.unique()) == 40
        rows, columns = cells // 10, cells % 10
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) >= 40
    spans = [(c // 10).max() - (c // 10).min() + 1 for c in drawn.long()]
    assert min(spans) < 9 and len({tuple(c.tolist()) for c in drawn}) == 50
    assert crop_cells(features, (10, 10), 0.001, 0.7, seed=3).shape == (50, 1, 1)


def test_captions_of_the_language_model_are_learnt_behind_the_instruction(model: Blip2) -> None:
    """Of three photos the first two are captioned; the Q-Former reads what is asked."""
    captions = torch.randint(TOKENS, (2, 2, 5))
    one = objective(model, caption=1.0)
    one.recipe = recipe_with(one.recipe, {"lm_photos": 0.6})
    loss = one(batch(3, 1)._replace(captions=None, lm_captions=captions), seed=0)
    image = model.image_keys_values(batch(3, 1).image_features[:2])
    ids, mask = INSTRUCTION
    queries = model.read_photos(image, (ids.expand(2, -1), mask.expand(2, -1))).queries
    torch.testing.assert_close(loss, one.caption_loss(model.soft_prompt(queries), captions))
    blind = one.caption_loss(model.soft_prompt(model.read_photos(image).queries), captions)
    assert not torch.allclose(loss, blind)


def test_training_needs_a_language_model() -> None:
    blip2 = tiny_blip2(with_lm=False).model
    with pytest.raises(InputError, match="this model has none"):
        blip2.network  # noqa: B018
    assert tiny_blip2().model.network.config.layers == 2
