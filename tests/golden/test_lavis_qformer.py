"""The Q-Former against what LAVIS's own code returned on tiny random weights: its three masks, its objectives, its generation."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from triptych.checkpoints.tables.blip2 import LAVIS
from triptych.checkpoints.tables.keys import load
from triptych.errors import InputError
from triptych.nn import masks
from triptych.nn.configs import QFormerConfig
from triptych.nn.qformer import ImageKeysValues, QFormer, QFormerHeads
from triptych.systems.blip2_losses import itc_similarity, itg_loss

Golden = dict[str, Tensor]
Q, T = 5, 8


CONFIG = QFormerConfig(32, dim=48, layers=4, heads=4, mlp_dim=96, queries=Q, vocab_size=90, max_positions=40)


class Stage1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qformer, self.heads = QFormer(CONFIG), QFormerHeads(CONFIG, feature_dim=24)

    def words(self, text: Tensor) -> Tensor:
        return self.heads.lm_logits(text, self.qformer.word_embeddings.weight)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_file(Path(__file__).with_name("lavis_qformer.safetensors"))


@pytest.fixture(scope="module")
def state(golden: Golden) -> Golden:
    """As in a LAVIS checkpoint, where the Q-Former goes by its whole name."""
    found = {key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}
    return {f"Qformer.{key[2:]}" if key.startswith("q.") else key: value for key, value in found.items()}


@pytest.fixture(scope="module")
def model(state: Golden) -> Stage1:
    stage1 = Stage1().eval().requires_grad_(False)
    report = load(stage1, state, LAVIS)
    assert (set(report.mapped), report.missing, report.ignored) == (set(state), (), ())
    return stage1


@pytest.fixture(scope="module")
def image(model: Stage1, golden: Golden) -> ImageKeysValues:
    return model.qformer.image_keys_values(golden["in/image"])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_itc(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    queries = model.qformer.encode_image(image).queries
    text = model.qformer.encode_text(golden["in/input_ids"], golden["in/text_mask"]).text
    image_features, text_features = model.heads.image_features(queries), model.heads.text_features(text)
    close(queries, golden["out/itc.query.last"])
    close(text, golden["out/itc.text.last"])
    close(image_features, golden["out/itc.image_feats"])
    close(text_features, golden["out/itc.text_feats"])
    close(itc_similarity(image_features, text_features), golden["out/itc.sim"])
    close(model.heads.temperature, golden["state/temp"])


def test_itm(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    output = model.qformer.encode_both(image, golden["in/input_ids"], golden["in/text_mask"])
    close(torch.cat([output.queries, output.text], 1), golden["out/itm.last"])
    close(model.heads.itm_logits(output.queries), golden["out/itm.logits_pairs"])


def test_itm_grid_with_each_photo_read_once(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    texts, mask = golden["in/input_ids"].repeat(3, 1), golden["in/text_mask"].repeat(3, 1)
    grid = model.heads.itm_logits(model.qformer.encode_both(image, texts, mask).queries).view(3, 3, 2)
    close(grid, golden["out/itm.grid"])


def test_queries_as_a_prefix(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    for i, (keys, values) in enumerate(model.qformer.encode_image(image).past.layers):
        close(keys, golden[f"out/query.cache.{i}.k"])
        close(values, golden[f"out/query.cache.{i}.v"])


def test_itg_and_its_loss(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    ids, text_mask = golden["in/decoder_ids"], golden["in/text_mask"].bool()
    past = model.qformer.encode_image(image).past
    hidden = masks.intersection(masks.causal(T, past=Q), masks.padding(golden["in/prefix_mask"]))
    close(model.words(model.qformer(input_ids=ids, mask=hidden, past=past).text), golden["out/itg.logits"])
    logits = model.words(model.qformer.continue_text(ids, past).text)
    close(logits[text_mask], golden["out/itg.logits"][text_mask])
    close(itg_loss(logits, ids, text_mask), golden["out/itg.loss"])


def test_itg_in_one_pass(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    mask = masks.intersection(masks.itg(Q, T), masks.padding(golden["in/prefix_mask"]))
    output = model.qformer(image, golden["in/decoder_ids"], mask)
    close(torch.cat([output.queries, output.text], 1), golden["out/itg.onepass.last"])


def test_itg_token_by_token(model: Stage1, golden: Golden, image: ImageKeysValues) -> None:
    past = masked = model.qformer.encode_image(image).past
    for t in range(T):
        ids, text_mask = golden["in/decoder_ids"][:, t : t + 1], golden["in/text_mask"][:, t].bool()
        output = model.qformer.continue_text(ids, past)
        close(model.words(output.text)[text_mask], golden["out/itg.steps.logits"][:, t : t + 1][text_mask])
        past = output.past
        output = model.qformer(input_ids=ids, mask=masks.padding(golden["in/prefix_mask"][:, : Q + t + 1]), past=masked)
        close(model.words(output.text), golden["out/itg.steps.logits"][:, t : t + 1])
        masked = output.past


def test_masks_are_theirs(golden: Golden) -> None:
    """Theirs add 0 where a token may look and -10000 where it may not."""
    text = golden["in/text_mask"].bool()
    present = golden["in/prefix_mask"]
    for name, ours in {
        "itc.text": masks.padding(text),
        "itm.joint": masks.intersection(masks.itm(Q, T), masks.padding(present)),
        "itg.onepass": masks.intersection(masks.itg(Q, T), masks.padding(present)),
        "itg.prefix": masks.intersection(masks.causal(T, past=Q), masks.padding(present)),
    }.items():
        theirs = golden[f"out/mask.{name}"].squeeze(1) == 0
        assert ours is not None
        assert torch.equal(*torch.broadcast_tensors(ours, theirs)), name


class Stage2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qformer, self.projection = QFormer(replace(CONFIG, vocab_size=0)), nn.Linear(48, 10)


def test_second_stage(golden: Golden, state: Golden) -> None:
    """It has dropped the text side and the heads, and has a projection to the language model."""
    text = re.compile(r"(word|position)_embeddings|layer\.\d+\.(intermediate|output)\.|cls|_proj|itm_head|temp")
    kept = {key: value for key, value in state.items() if not text.search(key)}
    kept |= {"opt_proj.weight": torch.randn(10, 48), "opt_proj.bias": torch.randn(10), "opt_model.x": torch.zeros(1)}
    model = Stage2().eval().requires_grad_(False)
    report = load(model, kept, LAVIS)
    assert (set(report.mapped), report.missing, report.ignored) == (kept.keys() - {"opt_model.x"}, (), ("opt_model.x",))
    queries = model.qformer.encode_image(model.qformer.image_keys_values(golden["in/image"])).queries
    close(queries, golden["out/itc.query.last"])
    close(model.projection.weight, kept["opt_proj.weight"])


def test_weights_that_should_be_tied(state: Golden) -> None:
    untied = state | {"Qformer.cls.predictions.decoder.weight": torch.randn(90, 48)}
    with pytest.raises(InputError, match=r"which should be tied"):
        load(Stage1(), untied, LAVIS)
