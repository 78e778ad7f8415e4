"""Our decoder against transformers' on the same random weights: logits, greedy ids, ragged batches, attention maps."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_decoder import as_transformers
from tokenizers import Tokenizer, models
from torch import Tensor

from triptych.checkpoints.language_models import load_language_model
from triptych.checkpoints.parts import part_path
from triptych.checkpoints.place import LoadReport
from triptych.checkpoints.tables.language import FAMILIES, config_from_hf, translated
from triptych.errors import InputError
from triptych.generate import Search, generate
from triptych.nn.cache import KVCache
from triptych.nn.decoder import Decoder, Prompt, left_pad

SMALL: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48, "num_attention_heads": 6, "max_position_embeddings": 128}
LLAMA = SMALL | {"num_hidden_layers": 3, "intermediate_size": 80, "num_key_value_heads": 2, "rope_theta": 5000.0}
OPT = SMALL | {"num_hidden_layers": 3, "ffn_dim": 80, "word_embed_proj_dim": 48}
NEOX = SMALL | {"num_hidden_layers": 3, "intermediate_size": 80}
MPT: dict[str, Any] = {"vocab_size": 97, "d_model": 48, "n_layers": 3, "max_seq_len": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 3.0],
    "original_max_position_embeddings": 96,
}
GEMMA2 = LLAMA | {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 5}

CONFIGS: dict[str, Any] = {
    "llama, grouped, tied": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama, grouped, untied": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama, biases, wide heads": transformers.LlamaConfig(
        **LLAMA | {"num_key_value_heads": 6}, head_dim=12, attention_bias=True, mlp_bias=True
    ),
    "llama 3": transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3),
    "qwen2": transformers.Qwen2Config(**LLAMA),
    "qwen2, window in the last layer": transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=12),
    "smollm3": transformers.SmolLM3Config(**LLAMA, no_rope_layer_interval=2, pad_token_id=0),
    "olmo2": transformers.Olmo2Config(**LLAMA, pad_token_id=0, eos_token_id=1),
    "phi3": transformers.Phi3Config(**LLAMA, sliding_window=7, pad_token_id=0),
    "phi3, long": transformers.Phi3Config(
        **LLAMA, rope_parameters=LONGROPE, original_max_position_embeddings=96, pad_token_id=0
    ),
    "yarn": transformers.Qwen3Config(**LLAMA, rope_parameters=YARN),
    "yarn, its own magnitude": transformers.LlamaConfig(
        **LLAMA, rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 8, "truncate": False}
    ),
    "gemma": transformers.GemmaConfig(**LLAMA | {"num_key_value_heads": 1}, head_dim=12),
    "gemma 2": transformers.Gemma2Config(**GEMMA2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma 3": transformers.Gemma3TextConfig(
        **GEMMA2,
        sliding_window_pattern=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "mistral": transformers.MistralConfig(**LLAMA, sliding_window=None),
    "mistral, window": transformers.MistralConfig(**LLAMA, sliding_window=5),
    "opt": transformers.OPTConfig(**OPT, activation_function="relu"),
    "opt, gelu, untied": transformers.OPTConfig(**OPT, activation_function="gelu", tie_word_embeddings=False),
    "opt, 350m": transformers.OPTConfig(**OPT | {"word_embed_proj_dim": 32}, do_layer_norm_before=False),
    "gpt_neox": transformers.GPTNeoXConfig(**NEOX, rotary_pct=0.25),
    "gpt_neox, in sequence": transformers.GPTNeoXConfig(
        **NEOX, rotary_pct=0.25, use_parallel_residual=False, hidden_act="gelu_fast"
    ),
    "gpt_neox, all turned": transformers.GPTNeoXConfig(**NEOX, rotary_pct=1.0, rotary_emb_base=5000),
    "gpt_neox, all turned, in sequence": transformers.GPTNeoXConfig(
        **NEOX, rotary_pct=1.0, use_parallel_residual=False, attention_bias=False
    ),
    "mpt, 4 heads": transformers.MptConfig(**MPT, n_heads=4),
    "mpt, 6 heads": transformers.MptConfig(**MPT, n_heads=6),
}


def random_weights(model: torch.nn.Module) -> None:
    """Every weight random, norms and biases too: their initial ones and zeros would hide a swapped or forgotten one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = centre + noise * (0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5)


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    """A random transformers model, and ours from the directory where it is saved."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    config._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    random_weights(theirs)
    theirs.tie_weights()
    ours, report = saved(theirs, tmp_path_factory.mktemp("saved"))
    assert not report.ignored and len(report.mapped) == len(theirs.state_dict()) - ours.config.tied
    assert ours.config == config_from_hf(config.to_dict())
    return theirs, ours


def saved(theirs: Any, directory: Path) -> tuple[Decoder, LoadReport]:
    theirs.save_pretrained(directory)
    Tokenizer(models.BPE()).save(str(directory / "tokenizer.json"))
    ours, _, report = load_language_model(directory)
    return ours, report


def greedy(model: Any, ids: Tensor, steps: int) -> list[int]:
    """transformers' greedy ids of one text, read anew at every step."""
    text = ids
    for _ in range(steps):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    return text[0, ids.shape[1] :].tolist()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_logits(pair: tuple[Any, Decoder]) -> None:
    theirs, ours = pair
    ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert expected.std() > 0.3  # the weights do say something
    close(ours.logits(ours(ids)), expected)
    close(ours.logits(ours(ours.embed(ids))), expected)


def test_greedy_ids(pair: tuple[Any, Decoder]) -> None:
    theirs, ours = pair
    ids = torch.randint(0, 97, (1, 9), generator=torch.Generator().manual_seed(2))
    [[text]] = generate(ours, ids, Search(eos=frozenset(), max_new_tokens=32))
    assert list(text.ids) == greedy(theirs, ids, 32)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits(pair: tuple[Any, Decoder], dtype: torch.dtype) -> None:
    """A whole text, a ragged batch and a token at a time; about the same logits as in fp32, within what 16 bits lose in three layers."""
    fp32 = pair[1]
    ours = deepcopy(fp32).to(dtype)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False
    caches = KVCache(ours.config.layers), KVCache(fp32.config.layers)
    pieces = [ids[:, :7], ids[:, 7:8], ids[:, 8:]]
    for whole in (None, mask):
        logits, expected = (model.logits(model(ids, whole)) for model in (ours, fp32))
        assert logits.dtype == dtype and error(logits, expected) < (0.15 if dtype == torch.bfloat16 else 0.02)
    for piece in pieces:
        logits, expected = (m.logits(m(piece, cache=c)) for m, c in zip((ours, fp32), caches, strict=True))
        assert error(logits, expected) < (0.15 if dtype == torch.bfloat16 else 0.02)
    assert ours.blocks[0].attention_weights(*ours.embed_inputs(ids)).dtype == dtype


def error(logits: Tensor, expected: Tensor) -> float:
    return float((logits.float() - expected).abs().mean() / expected.abs().mean())


def test_ragged_batch(pair: tuple[Any, Decoder]) -> None:
    """Left-padded texts, as ids and as embeddings, answer as each alone does in transformers."""
    theirs, ours = pair
    rows = [torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 11, 7)]
    expected = torch.cat([theirs(row[None]).logits[:, -1] for row in rows])
    next_ids = expected.argmax(-1)
    expected_next = torch.cat(
        [theirs(torch.cat([r, i[None]])[None]).logits[:, -1] for r, i in zip(rows, next_ids, strict=True)]
    )
    for prompt in (left_pad(rows), left_pad([ours.embed(row) for row in rows])):
        logits, cache = ours.prefill(prompt)
        close(logits, expected)
        close(ours.step(next_ids, cache)[0], expected_next)


def test_saved_without_its_head(pair: tuple[Any, Decoder], tmp_path: Path) -> None:
    theirs, ours = pair
    if not ours.config.tied:
        with pytest.raises(InputError, match=r"does not fit Decoder: missing head\.weight"):
            saved(theirs.base_model, tmp_path)
        return
    again, report = saved(theirs.base_model, tmp_path)
    assert not report.ignored
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_tied_head_is_ignored(pair: tuple[Any, Decoder]) -> None:
    theirs, ours = pair
    if ours.config.tied:
        _, report = translated(theirs.state_dict(), FAMILIES[theirs.config.model_type].table, ours.config)
        assert report.ignored == ("lm_head.weight",)


def test_attention_maps(pair: tuple[Any, Decoder]) -> None:
    theirs, ours = pair
    ids = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(3))
    expected = theirs(ids, output_attentions=True).attentions
    for mine, other in zip(ours.attention_maps(ids), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


def test_refuses_what_it_does_not_cover() -> None:
    for change, words in (
        ({"model_type": "gpt_bigcode"}, "type 'gpt_bigcode'"),
        ({"hidden_act": "tanh"}, "'tanh'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic'"),
        ({"num_attention_heads": 7}, "heads is 7"),
        ({"hidden_size": 1 << 40}, "dim"),
        ({"num_hidden_layers": "3"}, "is invalid"),
    ):
        with pytest.raises(InputError, match=words):
            config_from_hf(CONFIGS["llama, grouped, tied"].to_dict() | {"head_dim": None} | change)
    for kind, change, words in (
        ("smollm3", {"num_hidden_layers": 1 << 40, "no_rope_layers": None}, "layers"),
        ("gemma 3", {"num_hidden_layers": 1 << 40, "layer_types": None}, "layers"),
        ("qwen2, window in the last layer", {"num_hidden_layers": 1 << 40, "layer_types": None}, "layers"),
        ("gpt_neox", {"hidden_act": "tanh"}, "'tanh'"),
        ("gpt_neox", {"num_attention_heads": 0}, "is invalid"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.4}}, "even rotary_dim"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic'"),
        ("gemma 3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mpt, 6 heads", {"attn_config": {"alibi": False}}, "alibi = False is not covered: only True is"),
        ("mpt, 6 heads", {"attn_config": {"prefix_lm": True}}, "prefix_lm"),
        ("mpt, 6 heads", {"attn_config": {"clip_qkv": 6}}, "clip_qkv = 6 is not covered: only None is"),
        ("mpt, 6 heads", {"attn_config": {"softmax_scale": 0.1}}, "softmax_scale"),
        ("mpt, 6 heads", {"attn_config": {"attn_type": "multiquery_attention"}}, "'multiquery_attention'"),
        ("mpt, 6 heads", {"attn_config": "alibi"}, "is invalid"),
        ("mpt, 6 heads", {"logit_scale": 0.5}, "logit_scale"),
        ("mpt, 6 heads", {"n_heads": 7}, "heads is 7"),
    ):
        with pytest.raises(InputError, match=words):
            config_from_hf(CONFIGS[kind].to_dict() | change)
    longer = CONFIGS["mpt, 4 heads"].to_dict() | {"attn_config": {"alibi_bias_max": 16}}
    assert config_from_hf(longer).alibi_bias_max == 16
    with pytest.raises(InputError, match="has no 'hidden_size'"):
        config_from_hf({"model_type": "opt", "vocab_size": 4})


@pytest.mark.parts
def test_smollm2() -> None:
    """The part's own weights, in both models: logits of some prompts, 32 greedy tokens, chunks, a ragged batch."""
    ours, tokenizer, report = load_language_model(part_path("smollm2-135m"))
    assert not report.ignored and len(report.mapped) == 272
    c = ours.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.groups,
        intermediate_size=c.ffn_dim,
        max_position_embeddings=c.max_positions,
        rope_theta=c.rope_theta,
        rms_norm_eps=c.eps,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(as_transformers(ours), assign=True, strict=False)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    theirs.eval().requires_grad_(False)

    texts = ["A dog", "The photo shows two children who", "1, 2, 3, 4,"]
    rows = [torch.tensor(tokenizer.encode(text)) for text in texts]
    question = [{"role": "user", "content": "Write a short poem about the sea."}]
    rows.append(torch.tensor(tokenizer.chat(question)))
    for row in rows:
        close(ours.logits(ours(row[None])), theirs(row[None]).logits)
    close(ours.prefill(left_pad(rows))[0], torch.cat([theirs(row[None]).logits[:, -1] for row in rows]), 1e-4)

    [[text]] = generate(ours, rows[-1][None], Search(eos=frozenset(), max_new_tokens=32))
    everything = torch.ones(1, len(rows[-1]), dtype=torch.long)  # else it takes each <|im_end|> for padding
    expected = theirs.generate(
        rows[-1][None], attention_mask=everything, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert list(text.ids) == expected[0, len(rows[-1]) :].tolist()

    cache = KVCache(c.layers)
    for part in rows[-1].split([1, 5, 2, len(rows[-1]) - 8]):
        logits, cache = ours.prefill(Prompt(part[None], cache=cache))
    close(logits, theirs(rows[-1][None]).logits[:, -1])
