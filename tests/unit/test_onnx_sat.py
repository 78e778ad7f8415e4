"""Show, Attend and Tell and the image encoder on ONNX Runtime beside torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_onnx import WORDS, assert_near, sat_engine, save, weights_of

from triptych.checkpoints.config import EncoderSpec
from triptych.engines.onnx.convolutions import published_convolutions, stored_convolutions
from triptych.engines.onnx.coverage import NotCoveredError, check_encoder, check_sat
from triptych.engines.onnx.legacy_torch import read_torch_file
from triptych.engines.onnx.sat import OnnxCaptionState, parts_of
from triptych.engines.onnx.sat_graph import annotations_graph
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.vision_graph import EncoderGraph
from triptych.generate import generate
from triptych.nn.cnn import EfficientNetLite
from triptych.nn.efficientnet import LAYERS, published_names
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite:
    torch.manual_seed(0)
    net = EfficientNetLite(cut=22, image_size=64)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [64, 75])
def test_the_encoder_and_its_parts(encoder: EfficientNetLite, tmp_path: Path, size: int) -> None:
    """75 pixels: odd sizes are padded on the right and at the bottom."""
    weights = weights_of(encoder)
    convolutions = stored_convolutions(weights, "")
    save([EncoderGraph(convolutions).write(), EncoderGraph(convolutions, end=22).write("trunk")], tmp_path)
    save([EncoderGraph(stored_convolutions(weights, "", 22), 22).write("tail")], tmp_path)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    given = {"pixel_values": pixels.numpy()}
    (whole,) = open_session(tmp_path / "encoder.onnx").run(None, given)
    assert_near(whole, encoder(pixels))
    (maps,) = open_session(tmp_path / "trunk.onnx").run(None, given)
    assert_near(maps, encoder.trunk(pixels))
    (annotations,) = open_session(tmp_path / "tail.onnx").run(None, {"features": maps})
    np.testing.assert_allclose(annotations, whole, atol=1e-4)


def test_published_weights_are_folded_as_torch_folds_them() -> None:
    rng, state = np.random.default_rng(0), {}
    shapes = {name: tuple(p.shape) for name, p in EfficientNetLite().state_dict().items()}
    for conv, norm, name in published_names():
        shape = shapes[f"{name}.weight"]
        state[f"{conv}.weight"] = rng.normal(size=shape).astype(np.float32)
        for kind in ("weight", "bias", "running_mean"):
            state[f"{norm}.{kind}"] = rng.normal(size=shape[:1]).astype(np.float32)
        state[f"{norm}.running_var"] = rng.random(shape[:1]).astype(np.float32)
    net = EfficientNetLite()
    net.load_published({name: torch.from_numpy(array) for name, array in state.items()})
    theirs = net.state_dict()
    ours = published_convolutions(state)
    assert {f"{name}.{kind}" for name in ours for kind in ("weight", "bias")} == set(theirs)
    for name, conv in ours.items():
        assert_near(conv.weight, theirs[f"{name}.weight"], 1e-5)
        assert_near(conv.bias, theirs[f"{name}.bias"], 1e-5)


def test_torchs_older_files_are_read_without_it(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {
        "a": base.view(4, 6),
        "view": base.view(4, 6)[1:, 2:4].t(),
        "ids": torch.tensor([1, 2]),
        "half": base.half(),
    }
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    ours = read_torch_file(tmp_path / "old.pth")
    assert set(ours) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(ours[name], tensor.float().numpy())


def test_a_torch_file_runs_no_code(tmp_path: Path) -> None:
    import pickle

    torch.save({"a": Path("x")}, tmp_path / "evil.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="pathlib"):
        read_torch_file(tmp_path / "evil.pth")


VARIANTS = [
    {},
    {"gate": "vector"},
    {"output": "linear", "score": "relu", "initial_state": "linear", "gate": "vector"},
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.05)])
def test_captions_word_by_word(tmp_path: Path, variant: dict[str, str], precision: str, tolerance: float) -> None:
    model, engine = sat_engine(tmp_path, variant, precision)
    search = engine.spec.search
    annotations = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))
    ours, state = engine.prefill(annotations.numpy())
    theirs, their_state = model.prefill(annotations)
    assert_near(ours, theirs, tolerance)
    for order in ([[0, 0, 0], [1, 1, 1]], [[2, 0, 1], [3, 3, 5]], [[4, 5, 3]], [[1], [1]]):
        rows = np.array(order)
        state, their_state = state.reorder(rows), their_state.reorder(torch.from_numpy(rows))
        ids = np.arange(rows.size) % len(WORDS)
        ours, state = engine.step(ids, state)
        theirs, their_state = model.step(torch.from_numpy(ids), their_state)
        assert_near(ours, theirs, tolerance)
    if precision == "fp32":
        found = generate(engine, annotations.numpy(), search)
        wanted = generate(model, annotations, search)
        assert [h[0].ids for h in found] == [h[0].ids for h in wanted]
        assert [h[0].logprob for h in found] == pytest.approx([h[0].logprob for h in wanted], abs=1e-4)


def test_captions_of_several_callers_are_written_together(tmp_path: Path) -> None:
    """Each with its own photos and beams; some come later, some leave."""
    _, engine = sat_engine(tmp_path)
    steps, rng = engine.joint_steps(), np.random.default_rng(0)

    def begin(photos: int, beams: int) -> list[OnnxCaptionState]:
        state = engine.prefill(rng.normal(size=(photos, 9, 64)).astype(np.float32))[1]
        return [state.reorder(np.arange(photos)[:, None].repeat(beams, 1))] * 2

    captions = [begin(1, 3), begin(1, 1), begin(2, 3)]
    for turn in range(6):
        if turn == 2:
            captions.append(begin(1, 3))
        if turn == 4:
            del captions[0]
        ids = [rng.integers(0, len(WORDS), state.h.shape[0] * state.h.shape[1]) for state, _ in captions]
        results = steps.step(ids, [state for state, _ in captions])
        for caption, own, (logits, state) in zip(captions, ids, results, strict=True):
            alone, caption[1] = engine.step(own, caption[1])
            np.testing.assert_allclose(logits, alone, atol=1e-5)
            photos, beams = state.h.shape[:2]
            order = np.arange(photos)[:, None] * beams + rng.integers(0, beams, (photos, beams))
            caption[:] = state.reorder(order), caption[1].reorder(order)


def test_annotations_are_the_encoders_tail(encoder: EfficientNetLite, tmp_path: Path) -> None:
    model = ShowAttendTell(ShowAttendTellConfig(9, 1280), encoder)
    save([annotations_graph(weights_of(model), 22)], tmp_path)
    maps = torch.randn(2, 352, 2, 2, generator=torch.Generator().manual_seed(1))
    (annotations,) = open_session(tmp_path / "annotations.onnx").run(None, {"features": maps.numpy()})
    assert_near(annotations, encoder.tail(maps))


def test_other_kinds_are_left_to_torch() -> None:
    check_encoder(EncoderSpec("efficientnet-lite2", stored=True))
    with pytest.raises(NotCoveredError, match="vgg19"):
        check_encoder(EncoderSpec("vgg19", stored=True))
    config = ShowAttendTellConfig(9, 5)
    check_sat(config, 22)
    with pytest.raises(NotCoveredError, match="hard"):
        check_sat(ShowAttendTellConfig(9, 5, attention="hard"), 22)
    with pytest.raises(NotCoveredError):
        check_sat(config, len(LAYERS))


def test_steps_of_many_captions_are_computed_in_parts_of_equal_beams() -> None:
    shapes = [(1, 10), (2, 1), (1, 10), (1, 10), (1, 3), (3, 10), (1, 3)]
    assert parts_of(shapes) == [[1], [4, 6], [0, 2], [3], [5]]
