"""The benchmarks still run, at tiny sizes: figures and peers, not speed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.systems.configs import ShowAttendTellConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("max_words", [3, 20])  # cut off, and ended by the clock
def test_plain_search_writes_the_same_captions(max_words):
    from benchmarks.sat_beam import Case, compare

    config = ShowAttendTellConfig.tutorial(50, 16, embed_dim=12, hidden_dim=24, attention_dim=8)
    record = compare(Case(config, photos=4, cells=9, max_words=max_words, end_bias=-6), repeats=1)
    assert 1 < record["words"] <= max_words
    assert (record["words"] == max_words) == (max_words == 3)
    assert record["ours_seconds"] > 0 and record["plain_seconds"] > 0


def test_warm_caption_reports_every_step(tmp_path):
    from benchmarks.sat_caption import measure, sample_checkpoint

    Image.effect_noise((64, 48), 80).convert("RGB").save(tmp_path / "photo.png")
    sample_checkpoint(tmp_path / "model", vocab_size=40, attention_dim=8)
    record = measure(str(tmp_path / "model"), tmp_path / "photo.png", repeats=1)
    steps = [record[name] for name in ("decode", "resize", "encode", "search")]
    assert all(s > 0 for s in steps) and record["total"] < 5 * sum(steps)
    assert 1 < record["words"] < 30  # the clock ends them


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_writes_what_transformers_does(texts, tied):
    from benchmarks.lm_decode import Case, compare

    torch.manual_seed(0)
    config = DecoderConfig(50, 24, 2, 4, 40, kv_heads=2, max_positions=64, tied=tied)
    decoder = Decoder(config).eval().requires_grad_(False)
    record = compare(decoder, Case(texts, prompt=5, new_tokens=6), repeats=1)
    assert record["tokens"] == 6 * texts
    assert all(record[f"{name}_{what}"] > 0 for name in ("ours", "theirs") for what in ("prompt", "all", "all_cpu"))


def test_flamingo_writes_what_projecting_all_pictures_again_writes():
    from benchmarks.flamingo import SIZES, Reference, decode

    record = decode(SIZES["tiny"], repeats=1)
    assert set(record) == {f"{who}_{shots}" for who in ("ours", "reference") for shots in SIZES["tiny"].shots}
    assert all(seconds > 0 for seconds in record.values())
    with pytest.raises(RuntimeError, match="different texts"):  # so pictures do matter
        decode(SIZES["tiny"], 1, lambda model, visual_tokens: Reference(model, -visual_tokens))


def test_flamingo_times_a_second_question_and_a_training_step():
    from benchmarks.flamingo import SIZES, question, train

    asked, step = question(SIZES["tiny"], repeats=1), train(SIZES["tiny"], repeats=1)
    assert asked["pictures"] == 3 and all(asked[name] > 0 for name in ("ours", "anew", "resampler"))
    assert step["sequences"] == 2 and step["ours"] > 0 and step["floor"] > 0


DRIVER = """
import sys
import benchmarks.__main__
from benchmarks.process import run_python
small, large = (run_python(["-c", f"print(len(b'x' * {n} * 2**20))"], 1) for n in (1, 100))
print(int(large.stdout), large.peak_mb - small.peak_mb, small.seconds, "torch" in sys.modules)
run_python(["-c", "raise SystemExit(3)"], 1)
"""


def test_each_process_is_measured_by_itself():
    """The driver itself stays small: the processes that it starts inherit its peak memory."""
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=ROOT, capture_output=True, text=True)
    length, difference, seconds, torch_imported = done.stdout.split()
    assert int(length) == 100 * 2**20
    assert 80 < float(difference) < 120
    assert float(seconds) > 0
    assert torch_imported == "False"
    assert done.returncode == 1 and "failed with exit code 3" in done.stderr
