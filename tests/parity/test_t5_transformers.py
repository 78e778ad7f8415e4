"""Our T5 against transformers' on the same random weights: logits, greedy and beam ids, ragged batches, attention to the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tiny_blip2 import byte_tokenizer
from torch import Tensor

from triptych.checkpoints.language_models import load_language_model
from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn.decoder import Prompt, left_pad
from triptych.nn.t5 import T5

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,  # more than the encoder has break their cache
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
CONFIGS = {
    "flan": transformers.T5Config(**SMALL, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "first": transformers.T5Config(**SMALL, feed_forward_proj="relu"),
}


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, T5]:
    """A random transformers model, and ours from the directory where it is saved; Flan-T5 has an output layer of its own."""
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(CONFIGS[request.param]).eval()
    if request.param == "flan":
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty(97, 24))
    theirs.requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        scale = 0.3 if parameter.ndim == 1 else 1.0 if "bias" in name else parameter.shape[-1] ** -0.5
        parameter.data = torch.randn_like(parameter) * scale + (1.0 if parameter.ndim == 1 else 0.0)
    directory = tmp_path_factory.mktemp("saved")
    torch.save(theirs.state_dict(), directory / "pytorch_model.bin")
    theirs.config.save_pretrained(directory)
    byte_tokenizer().tokenizer.save(str(directory / "tokenizer.json"))
    ours, _, report = load_language_model(directory)
    assert isinstance(ours, T5) and ours.config.tied == (request.param == "first")
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert set(report.ignored) == copies | ({"lm_head.weight"} if ours.config.tied else set())
    return theirs, ours


def prompt(length: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 97, (1, length), generator=torch.Generator().manual_seed(seed))


def with_end(ids: Tensor) -> Tensor:
    """As their tokenizer writes a prompt; ours is ended by the model."""
    return torch.cat([ids, torch.ones(len(ids), 1, dtype=torch.long)], 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("length", [1, 5, 40])
def test_logits(pair: tuple[Any, T5], length: int) -> None:
    theirs, ours = pair
    ids, text = prompt(length), torch.randint(2, 97, (1, 30), generator=torch.Generator().manual_seed(1))
    start = torch.zeros(1, 1, dtype=torch.long)
    expected = theirs(input_ids=with_end(ids), decoder_input_ids=torch.cat([start, text], 1)).logits
    assert expected.std() > 0.1
    first, state = ours.prefill(ids)
    close(first, expected[:, 0])
    close(ours.score(text[:, :20], state), expected[:, 1:21])
    close(ours.score(text[:, 20:], state), expected[:, 21:])
    close(ours.prefill(ours.embed(ids))[0], expected[:, 0])


def test_greedy_and_beam_ids(pair: tuple[Any, T5]) -> None:
    theirs, ours = pair
    ids = prompt(9)
    for beams in (1, 4):
        expected = theirs.generate(
            with_end(ids), num_beams=beams, max_new_tokens=25, do_sample=False, length_penalty=0.0, eos_token_id=None
        )
        [[text]] = generate(ours, ids, Search(eos=frozenset(), max_new_tokens=25, beams=beams))
        assert list(text.ids) == expected[0, 1:].tolist()


def test_beams_of_a_ragged_batch_equal_single_ones(pair: tuple[Any, T5]) -> None:
    _, ours = pair
    rows = [prompt(length, length)[0] for length in (3, 11, 6)]
    search = Search(eos=frozenset({5, 9, 40}), max_new_tokens=12, beams=3, n_best=2)
    together = generate(ours, left_pad(rows), search)
    for row, texts in zip(rows, together, strict=True):
        [alone] = generate(ours, row[None], search)
        assert [text.ids for text in texts] == [text.ids for text in alone]
        assert [text.logprob for text in texts] == pytest.approx([text.logprob for text in alone], abs=1e-4)


def test_attention_to_the_prompt(pair: tuple[Any, T5]) -> None:
    theirs, ours = pair
    ids, text = prompt(7), prompt(4, 3)
    inputs = torch.cat([torch.zeros(1, 1, dtype=torch.long), text], 1)
    theirs.set_attn_implementation("eager")
    expected = theirs(input_ids=with_end(ids), decoder_input_ids=inputs, output_attentions=True).cross_attentions
    for mine, other in zip(ours.prompt_attention(ours.embed(ids), text), expected, strict=True):
        torch.testing.assert_close(mine, other[..., :7], atol=1e-6, rtol=1e-4)


def test_prompts_that_are_refused(pair: tuple[Any, T5]) -> None:
    _, ours = pair
    with pytest.raises(InputError, match="the prompt is empty"):
        ours.prefill(prompt(0))
    with pytest.raises(InputError, match="4097 tokens: the language model reads 4096 at most"):
        ours.prefill(prompt(4096))
    with pytest.raises(ValueError, match="left_pad"):
        ours.prefill(Prompt(prompt(3), torch.tensor([[True, True, False]])))


def test_configs_that_cannot_be(pair: tuple[Any, T5]) -> None:
    for change, words in (
        ({"decoder_layers": 0}, "decoder_layers is 0, expected 1 to 1024"),
        ({"layers": 1 << 20}, "layers is 1048576"),
        ({"buckets": 6}, "buckets is 6, expected a multiple of 4"),
        ({"max_distance": 4}, "below twice max_distance"),
        ({"end_id": 97}, "expected ids below 97"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
    ):
        with pytest.raises(InputError, match=words):
            replace(pair[1].config, **change)
