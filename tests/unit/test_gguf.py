"""GGUF files, good and bad, as language models."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny_decoder import random_decoder
from tiny_gguf import GGUF_CONFIG, WORDS, interleaved, write_gguf

from triptych.checkpoints.gguf import read_gguf
from triptych.checkpoints.gguf_models import half_split
from triptych.checkpoints.language_models import load_language_model
from triptych.errors import InputError


def test_gguf_round_trip(gguf_path: Path) -> None:
    lm, tokenizer, report = load_language_model(gguf_path)
    original = random_decoder(GGUF_CONFIG)
    assert lm.config.rope_theta == 10000.0 and not lm.config.tied and not report.ignored
    for name, tensor in original.state_dict().items():
        assert torch.equal(lm.state_dict()[name], tensor), name
    assert not lm.training and not any(p.requires_grad for p in lm.parameters())
    assert tokenizer.eos_ids == {1} and len(tokenizer) == len(WORDS)


def test_gguf_quantised(tmp_path: Path) -> None:
    original = random_decoder(GGUF_CONFIG)
    write_gguf(tmp_path / "q.gguf", original, quantised=True)
    lm = load_language_model(tmp_path / "q.gguf").decoder
    for name, tensor in original.state_dict().items():
        step = (tensor.max() - tensor.min()) / 15
        assert (lm.state_dict()[name] - tensor).abs().max() <= step, name
        assert tensor.ndim == 1 or not torch.equal(lm.state_dict()[name], tensor)


def test_half_split_undoes_the_interleaving() -> None:
    rows = torch.randn(24, 5)
    assert torch.equal(half_split(interleaved(rows, 3), 3, "x"), rows)
    assert not torch.equal(interleaved(rows, 3), rows)
    with pytest.raises(InputError, match="x has 10 rows"):
        half_split(torch.randn(10, 5), 4, "x")


def test_gguf_truncated(gguf_path: Path, tmp_path: Path) -> None:
    content, cut = gguf_path.read_bytes(), tmp_path / "cut.gguf"
    for length in [*range(0, 200, 3), *range(200, len(content) - 1, len(content) // 60), len(content) - 64]:
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            load_language_model(cut)


def test_gguf_hostile(gguf_path: Path, tmp_path: Path) -> None:
    """Flipped bytes in the header: a clear refusal, or a model; never another error."""
    content, bad = gguf_path.read_bytes(), tmp_path / "bad.gguf"
    chance, refused = random.Random(0), 0
    header = content.index(b"blk.1.ffn_down") + 60
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 8])):
            changed[chance.randrange(4, header)] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        bad.write_bytes(changed)
        try:
            load_language_model(bad)
        except InputError:
            refused += 1
    assert refused > 50
    bad.write_bytes(content.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"", 1))
    with pytest.raises(InputError):
        load_language_model(bad)


def test_gguf_not_finite(gguf_path: Path, tmp_path: Path) -> None:
    content = bytearray(gguf_path.read_bytes())
    file = read_gguf(gguf_path)
    start = file.entries["output_norm.weight"].start
    content[start : start + 4] = b"\x00\x00\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"output_norm\.weight has values that are not finite"):
        load_language_model(tmp_path / "nan.gguf")


def test_gguf_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"\x80\x02}q\x00." * 20)
    with pytest.raises(InputError, match="not a GGUF file"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(InputError, match="No such file"):
        load_language_model(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        load_language_model(tmp_path)
