"""Published models in bf16, fp16 and int8 on torch, from end to end: captions, questions, choices, maps; through the command line, too."""

# ruff: noqa: F811 (fixtures of other files are parameters here)

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_blip2_t5_transformers import Pair as T5Pair
from test_blip2_t5_transformers import pair as t5  # noqa: F401
from test_blip2_transformers import Pair, generation, instruct, photos, retrieval  # noqa: F401
from test_idefics_transformers import Idefics, idefics  # noqa: F401
from tiny_blip2 import byte_tokenizer
from tiny_openflamingo import saved
from tiny_openflamingo_over import OVER, flamingo_state, language_model, lm_directory

from triptych.cli import main
from triptych.convert.checkpoint import convert_checkpoint
from triptych.models import load_blip2
from triptych.models.memory import weights_in
from triptych.nn.int8 import Int8Linear
from triptych.nn.t5 import T5
from triptych.tasks import Answer, Blip2Tasks, load

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}  # of all but the layers in int8
PRECISIONS = pytest.mark.parametrize("precision", DTYPES)
SHORT: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
Photos = list[Image.Image]


@pytest.fixture(scope="module", params=OVER)
def openflamingo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its gates are open."""
    folder, lm = tmp_path_factory.mktemp(request.param), language_model(request.param)
    state = {key: x + key.endswith("_gate") for key, x in flamingo_state(request.param, lm).items()}
    directory = lm_directory(folder / "lm", lm, byte_tokenizer().tokenizer)
    convert_checkpoint(saved(folder / "checkpoint.pt", state), folder / "ours", lm=directory)
    return folder / "ours"


def answers(tasks: Any, photos: Photos) -> Iterator[Answer]:
    """Of each kind; the first and last are choices."""
    yield tasks.ask(photos[0], "what is it?", ["a dog", "a cat"], explain=True)
    yield from tasks.caption(photos[:2], beams=2, explain=True, **SHORT)
    yield from tasks.ask(photos[:2], ["what?", "is it red or blue?"], explain=True, **SHORT)  # of two lengths
    if isinstance(tasks, Blip2Tasks):
        yield tasks.ask(photos[:2], "which?", ["left", "right"], explain=True)
    else:
        yield tasks.complete(photos[0], [(photos[1], "one"), (None, "two")], choices=["one", "two"], explain=True)


Check = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def check(photos: Photos) -> Check:
    """Everything is finite, and choices are about as likely as in fp32, whose answers are computed once for each checkpoint."""

    @cache
    def whole(folder: Path) -> list[Answer]:
        return [*answers(load(folder, device="cpu", precision="fp32"), photos)]

    return lambda folder, precision: compare(
        load(folder, device="cpu", precision=precision), precision, photos, whole(folder)
    )


def compare(tasks: Any, precision: str, photos: Photos, whole: Sequence[Answer]) -> None:
    """See ``check``."""
    model = tasks.engine.model
    assert {p.dtype for p in model.parameters()} == {DTYPES[precision]}
    layers = [module.codes for module in model.lm.modules() if isinstance(module, Int8Linear)]
    assert bool(layers) == (precision == "int8") and all(codes.dtype == torch.int8 for codes in layers)
    for answer, expected in zip(answers(tasks, photos), whole, strict=True):
        assert np.isfinite([answer.logprob, *answer.logprobs, *(answer.scores or {}).values()]).all()
        assert answer.evidence is not None and answer.evidence.maps.max() > 0
        assert answer.probabilities == (expected.probabilities and pytest.approx(expected.probabilities, abs=0.1))


@PRECISIONS
def test_an_openflamingo(openflamingo: Path, precision: str, check: Check) -> None:
    check(openflamingo, precision)


@PRECISIONS
@pytest.mark.parametrize("name", ["generation", "instruct"])
def test_a_blip2(name: str, precision: str, request: pytest.FixtureRequest, check: Check) -> None:
    check(request.getfixturevalue(name).target, precision)


@PRECISIONS
def test_a_blip2_over_a_t5(t5: T5Pair, precision: str, check: Check) -> None:
    check(Path(t5.ours.name), precision)


@PRECISIONS
def test_an_idefics(idefics: Idefics, precision: str, check: Check) -> None:
    check(Path(idefics.ours.name), precision)


@pytest.fixture(scope="module", params=["half", "int8"])
def narrow(request: pytest.FixtureRequest, instruct: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in another width."""
    copy = tmp_path_factory.mktemp("narrow") / request.param
    convert_checkpoint(instruct.target, copy, **{request.param: True})
    return copy


@PRECISIONS
def test_a_copy_in_another_width(narrow: Path, precision: str, check: Check) -> None:
    check(narrow, precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_layers_on_the_disk(precision: str, t5: T5Pair, instruct: Pair, photos: Photos, tmp_path: Path) -> None:
    """They are read in the dtype that is asked for."""
    for ours, layers in ((instruct.ours, "lm.blocks"), (t5.ours, "lm.decoder.blocks")):
        (tmp_path / "places.json").write_text(json.dumps({layers: "disk"}))
        tasks: Any = load(ours.name, device=str(tmp_path / "places.json"), precision=precision)
        assert {p.dtype for p in tasks.engine.model.parameters()} == {DTYPES[precision]}
        answer, expected = (x.ask(photos[0], "what?", ["a dog", "a cat"], explain=True) for x in (tasks, ours))
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=0.1) and answer.evidence is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_matching(precision: str, retrieval: Pair, photos: Photos) -> None:
    tasks, texts = load(retrieval.target, device="cpu", precision=precision), ["a dog", "a cat on it"]
    assert isinstance(tasks, Blip2Tasks)
    matches, expected = (x.match(photos[:2], texts, explain=True) for x in (tasks, retrieval.ours))
    for match, other in zip(matches, expected, strict=True):
        assert match.itc_cosine == pytest.approx(other.itc_cosine, abs=0.02)
        assert match.itm_prob == pytest.approx(other.itm_prob, abs=0.05)
        assert match.rerank == pytest.approx(other.rerank, abs=0.2)
        assert match.evidence is not None and match.evidence.maps.max() > 0


@torch.inference_mode()
def test_a_t5_whose_sums_fp16_cannot_hold(t5: T5Pair) -> None:
    """Such as Flan-T5-xl: what its feed-forward layers add exceeds 65504."""
    lm = load_blip2(Path(t5.ours.name)).model.lm
    assert isinstance(lm, T5)
    for block in (lm.encoder.blocks[0], lm.decoder.blocks[0]):
        block.get_submodule("ffn.down").weight.mul_(3e4)
    ids, block = torch.arange(3, 15)[None], lm.encoder.blocks[0]
    added, (expected, _) = block.ffn(block.ffn_norm(lm.embed(ids))), lm.prefill(ids)  # type: ignore[operator, union-attr]
    logits, _ = lm.half().prefill(ids)
    assert added.abs().max() > 65504 and logits.dtype == torch.float16
    assert (logits - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_an_estimate_is_the_same_before_and_after_conversion(
    generation: Pair,
    instruct: Pair,
    t5: T5Pair,
    idefics: Idefics,
) -> None:
    pairs = [(pair.folder, Path(pair.ours.name)) for pair in (generation, instruct, t5, idefics)]
    for folder, target in pairs:
        assert weights_in(folder).language == weights_in(target).language > 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The command line; returns the JSON that it prints."""

    def call(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments), "--device", "cpu", "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        record: dict[str, Any] = json.loads(out)
        return record

    return call


@pytest.mark.parametrize(("option", "precision"), [("--dtype", "fp16"), *(("--precision", name) for name in DTYPES)])
def test_the_command_line(
    option: str,
    precision: str,
    instruct: Pair,
    photos: Photos,
    run: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    photos[0].save(tmp_path / "photo.png")
    photo, model = tmp_path / "photo.png", ["--model", instruct.target, option, precision]
    caption = run("caption", photo, *model, "--max-new-tokens", 4, "--explain", tmp_path / "maps")
    assert np.isfinite(caption["logprob"]) and list((tmp_path / "maps").iterdir())
    choices = ["--choices", "a dog", "--choices", "a cat"]
    answer = run("ask", photo, "-q", "what is it?", *choices, *model, "--explain", tmp_path / "maps.html")
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3) and (tmp_path / "maps.html").exists()
    info, whole = run("info", instruct.target, option, precision), run("info", instruct.target, option, "fp32")
    assert info["parameters"] == whole["parameters"]
    assert info["memory_mb"] <= 0.55 * whole["memory_mb"]
    needed = run("info", instruct.target, "--estimate")["needed_gb"]
    assert needed.keys() == {"fp32", *DTYPES}
