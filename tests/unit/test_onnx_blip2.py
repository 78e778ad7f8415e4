"""BLIP-2 on ONNX Runtime beside torch: soft prompts, instructions, matching, captions by the Q-Former, prompts of pieces."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_blip2 import TinyNet, WordPieces, byte_tokenizer, tiny_blip2
from tiny_onnx import assert_near, language_model, opened, randomise, save, tiny_decoder, weights_of

from triptych.engines.interface import Blip2Spec, TextPieces
from triptych.engines.onnx.blip2 import OnnxBlip2, OnnxQFormer
from triptych.engines.onnx.language import LanguageGraph
from triptych.engines.onnx.qformer_graph import QFormerGraphs
from triptych.engines.onnx.text import EmbeddingTable
from triptych.errors import InputError
from triptych.generate import Search
from triptych.systems.blip2 import Blip2, GroundedText

TEXTS = ["the dog is running", "a cat on grass", "horse"]


class Both(NamedTuple):
    torch: Blip2
    onnx: OnnxBlip2
    words: WordPieces
    features: torch.Tensor  # of three photos


@pytest.fixture
def both(tmp_path: Path) -> Both:
    words = tiny_blip2().words
    model = Blip2(tiny_blip2().model.config, TinyNet(), tiny_decoder())
    randomise(model)
    weights, config = weights_of(model), model.config
    save(QFormerGraphs(config, weights, "fp32").all(with_lm=True), tmp_path)
    save([LanguageGraph(model.lm.config, weights.below("lm."), "fp32").write()], tmp_path)
    table = EmbeddingTable(weights.array("qformer.word_embeddings.weight"), None)
    qformer = OnnxQFormer(tmp_path, config, table, weights.array("qformer.position_embeddings.weight"))
    spec = Blip2Spec(words, byte_tokenizer(), Search(frozenset({0})), 64, 120, 3, True, True, True, "lm")
    temperature = float(model.heads.temperature)
    engine = OnnxBlip2(opened(tmp_path, config), spec, qformer, language_model(model.lm, tmp_path), temperature)
    return Both(model, engine, words, torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(1)))


def test_soft_prompts_with_and_without_a_question(both: Both) -> None:
    image, arrays = both.torch.image_keys_values(both.features), list(both.features.numpy())
    alone = np.stack([soft.vectors for soft in both.onnx.read(arrays, None)])
    assert_near(alone, both.torch.soft_prompt(both.torch.read_photos(image).queries))
    ids, mask = both.words.encode(TEXTS)
    asked = both.onnx.read(arrays, TextPieces(ids.numpy(), mask.numpy()))
    theirs = both.torch.soft_prompt(both.torch.read_photos(image, (ids, mask)).queries)
    assert_near(np.stack([soft.vectors for soft in asked]), theirs)
    assert all(soft.cells is None for soft in asked)


def test_a_batch_equals_its_photos(both: Both) -> None:
    arrays = list(both.features.numpy())
    together = both.onnx.itc_images(arrays)
    for row, photo in enumerate(arrays):
        np.testing.assert_allclose(both.onnx.itc_images([photo])[0], together[row], atol=1e-6)


def test_every_photo_with_every_text(both: Both) -> None:
    image, arrays = both.torch.image_keys_values(both.features), list(both.features.numpy())
    ids, mask = both.words.encode(TEXTS)
    texts = TextPieces(ids.numpy(), mask.numpy())
    text_features = both.torch.text_features(ids, mask)
    ours = both.onnx.itc_texts(texts)
    assert_near(ours, text_features)
    queries = both.torch.read_photos(image).queries
    assert_near(both.onnx.itc_images(arrays), both.torch.heads.image_features(queries))
    theirs = both.torch.match(image, queries, text_features, ids, mask)
    our_queries, scores = both.onnx.match(arrays, texts, ours)
    assert_near(our_queries, both.torch.heads.image_features(queries))
    for our_scores, their_scores in zip(scores, theirs, strict=True):
        assert_near(our_scores, their_scores)


def test_padding_behind_a_text_changes_nothing(both: Both) -> None:
    ids, mask = both.words.encode(TEXTS)
    together = both.onnx.itc_texts(TextPieces(ids.numpy(), mask.numpy()))
    for row, text in enumerate(TEXTS):
        alone = both.onnx.itc_texts(TextPieces(*both.words.encode_arrays([text])))
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_captions_by_the_qformer(both: Both) -> None:
    theirs = GroundedText(both.torch, both.words.dec)
    logits, state = theirs.prefill(both.torch.image_keys_values(both.features))
    ours, our_state = both.onnx.writer.prefill(list(both.features.numpy()))
    assert_near(ours, logits)
    rng = np.random.default_rng(0)
    for order in ([[0, 0], [1, 1], [2, 2]], [[1, 0], [3, 3], [4, 5]], [[5, 4]]):
        rows = np.array(order)
        state, our_state = state.reorder(torch.from_numpy(rows)), our_state.reorder(rows)
        ids = rng.integers(4, 40, rows.size)
        logits, state = theirs.step(torch.from_numpy(ids), state)
        ours, our_state = both.onnx.writer.step(ids, our_state)
        assert_near(ours, logits)


def test_prompts_of_ids_and_soft_prompts(both: Both) -> None:
    soft = [x.vectors for x in both.onnx.read(list(both.features.numpy()), None)]
    prompts = [[[1, 2], soft[0], [3]], [[], soft[1], [4, 5], soft[2], [6]]]
    ours, cache = both.onnx.prefill(prompts)
    pieces = [
        [torch.from_numpy(p) if isinstance(p, np.ndarray) else torch.tensor(p, dtype=torch.long) for p in row]
        for row in prompts
    ]
    theirs, state = both.torch.lm.prefill(both.torch.prompt(pieces))
    assert_near(ours, theirs)
    ours, cache = both.onnx.step(np.array([7, 8]), cache)
    theirs, state = both.torch.lm.step(torch.tensor([7, 8]), state)
    assert_near(ours, theirs)


def test_texts_are_scored_behind_one_prompt(both: Both) -> None:
    logits, cache = both.onnx.prefill([[[1, 2, 3]]])
    texts = [[4, 5, 6], [7]]
    found = both.onnx.score(logits, cache, texts)
    for text, logprobs in zip(texts, found, strict=True):
        theirs = both.torch.lm.logits(both.torch.lm(torch.tensor([[1, 2, 3, *text[:-1]]])))[0, 2:].log_softmax(-1)
        assert logprobs == pytest.approx([float(theirs[i, token]) for i, token in enumerate(text)], abs=1e-3)


def test_a_text_too_long_for_the_qformer(both: Both) -> None:
    with pytest.raises(InputError, match="65 word pieces: the Q-Former reads 64"):
        both.onnx.itc_texts(TextPieces(np.ones((1, 65), np.int64), np.ones((1, 65), bool)))
