"""A model spread over devices: the same text with its blocks on the disk, less memory, and what cannot lie anywhere refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from test_blip2_t5_transformers import pair as t5_pair  # noqa: F401
from test_blip2_transformers import Pair, generation, photos  # noqa: F401
from test_memory import checkpoint, peak, published  # noqa: F401

from triptych import InputError, load
from triptych.cli import main
from triptych.models import placement
from triptych.models.blip2 import load_blip2
from triptych.models.placement import Placement, choose_places, movable_parts, read_placement
from triptych.nn.linear import CpuProduct

CPU = torch.device("cpu")
BLOCKS = {"vision_encoder.blocks": "disk", "lm.blocks": "disk", "lm.blocks.0": "cpu"}


def map_file(folder: Path, places: dict[str, Any]) -> str:
    (folder / "map.json").write_text(json.dumps(places))
    return str(folder / "map.json")


@pytest.mark.parametrize("beams", [1, 3])
def test_the_same_text_from_the_disk(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    beams: int,
) -> None:
    spread: Any = load(generation.target, device=map_file(tmp_path, BLOCKS))
    whole, weights = generation.ours, dict(spread.engine.model.named_parameters())
    on_disk = {name for name, x in weights.items() if x.device.type == "meta"}
    assert on_disk == {name for name in weights if name.startswith(("vision_encoder.blocks.", "lm.blocks.1."))}
    for photo in photos:
        search = {"beams": beams, "max_new_tokens": 6}
        texts = [(m.caption(photo, **search).text, m.ask(photo, "what is it?", **search).text) for m in (spread, whole)]
        assert texts[0] == texts[1]
    assert all(x.device.type == "meta" for name, x in weights.items() if name in on_disk)
    kept = [
        m for m in spread.engine.model.lm.blocks[1].modules() if isinstance(m, CpuProduct) and m._packed is not None
    ]
    assert not kept


def test_the_command(
    generation: Pair,  # noqa: F811
    photos: list[Image.Image],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos[0].save(tmp_path / "photo.png")
    texts = []
    for device in ("cpu", "auto", map_file(tmp_path, BLOCKS)):
        options = ["--model", str(generation.target), "--device", device, "--max-new-tokens", "5", "--json"]
        monkeypatch.setattr(sys, "argv", ["triptych", "caption", str(tmp_path / "photo.png"), *options])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        texts.append(json.loads(capsys.readouterr().out)["caption"])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"qformer": "disk"}, "'qformer' is no part that can lie on disk: those begin with lm., vision_encoder."),
        ({"lm.blocks": "cuda:9"}, "'lm.blocks' is on \"cuda:9\", expected disk or a device that is here"),
        ({"lm.blocks": 3}, "'lm.blocks' is on 3, expected disk"),
        ({"": "disk"}, "the main device .* is disk"),
    ],
)
def test_maps_that_cannot_be_met(
    generation: Pair,  # noqa: F811
    tmp_path: Path,
    places: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        load(generation.target, device=map_file(tmp_path, places))
    with pytest.raises(InputError, match="cannot read"):
        load(generation.target, device=str(tmp_path / "none.json"))


def test_what_is_free_decides(generation: Pair, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The main device first, then the others in their order, then the disk; the room of the largest part stays free."""
    model = load_blip2(generation.target).model
    parts = movable_parts(model)
    assert [*parts] == ["vision_encoder.blocks.0", "vision_encoder.blocks.1", "lm.blocks.0", "lm.blocks.1"]
    sizes = [4 * sum(p.numel() for p in model.get_submodule(part).parameters()) for part in parts]
    rest = 4 * sum(p.numel() for p in model.parameters()) - sum(sizes)
    needed = rest + max(sizes) + placement.BESIDES
    free = {"cpu": float(needed), "cuda:1": float(sizes[0])}
    monkeypatch.setattr(placement, "free_bytes", lambda main: dict(free))
    auto = Placement(CPU, None)
    assert [*choose_places(model, auto, torch.float32).values()] == ["cuda:1", "disk", "disk", "disk"]
    free["cpu"] += sizes[0] + sizes[1]
    assert choose_places(model, auto, torch.float32).keys() == {"lm.blocks.0", "lm.blocks.1"}
    free["cpu"] = needed - 1
    with pytest.raises(InputError, match=r"cpu has no room for the 0\.5 GB that must lie there"):
        choose_places(model, auto, torch.float32)
    assert read_placement("auto").places is None


def test_eight_bits_cannot_stay_on_the_disk(generation: Pair, tmp_path: Path) -> None:  # noqa: F811
    from triptych.convert.checkpoint import convert_checkpoint

    big = tmp_path / "int8"
    convert_checkpoint(generation.target, big, int8=True)
    with pytest.raises(InputError, match="not in 8 bits") as refusal:
        placement.check_on_disk({"lm.missing": "disk"}, big, load_blip2(big).config)
    assert "lm.missing" in str(refusal.value)


def test_blocks_that_keep_keys_and_values_move_in_pieces(t5_pair: Any) -> None:  # noqa: F811
    model = t5_pair.ours.engine.model
    parts = movable_parts(model)
    assert parts["lm.encoder.blocks.0"] and not parts["lm.decoder.blocks.1.cross.key_value"]
    assert "lm.decoder.blocks.0" not in parts
    places = Placement(CPU, {"lm.decoder.blocks": "cuda:1"})
    with pytest.raises(InputError, match=r"'lm\.decoder\.blocks' cannot be computed on cuda:1"):
        choose_places(model, places, torch.float32)


LOAD = (
    "from triptych.models.blip2 import load_blip2; from triptych.models.placement import Placement; "
    "load_blip2(Path(sys.argv[1]), placement=Placement(torch.device('cpu'), {x: 'disk' for x in sys.argv[2:]}))"
)


def test_parts_on_the_disk_take_no_memory(checkpoint: Path) -> None:  # noqa: F811
    whole, spread = peak(LOAD, checkpoint), peak(LOAD, checkpoint, "lm.blocks", "vision_encoder.blocks")
    model = load_blip2(checkpoint, placement=Placement(CPU, {"lm.blocks": "disk"})).model
    moved = 4 * sum(x.numel() for part in movable_parts(model) for x in model.get_submodule(part).parameters())
    assert moved > 500e6 and whole - spread > 0.8 * moved
