"""Pixels: ours are those of the published processors, on real photos, the cut-out ones too; and what is written of them in a checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.convert.published import published_pixels
from triptych.errors import InputError
from triptych.io.images import load_image, pixel_array, pixel_values
from triptych.io.pixels import PixelSpec

transformers = pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "src" / "triptych" / "examples"
PHOTOS = ("cat.jpg", "street.jpg", "gull.jpg", "pizzas.jpg")  # wide and upright
PROCESSORS = {
    "clip": transformers.CLIPImageProcessorPil(),
    "clip, larger": transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "dinov2": transformers.BitImageProcessorPil(size={"shortest_edge": 256}),
    "siglip": transformers.SiglipImageProcessorPil(),
    "blip": transformers.BlipImageProcessorPil(size={"height": 224, "width": 224}),
    "vit": transformers.ViTImageProcessorPil(),
}


def processor_folder(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processors(name: str, tmp_path: Path) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    for photo in PHOTOS:
        image = load_image(EXAMPLES / photo)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        spec = published_pixels(tmp_path, theirs.shape[-1])
        np.testing.assert_array_equal(spec.shortest_side is not None, processor.size.get("shortest_edge") is not None)
        np.testing.assert_allclose(pixel_array(image, spec), theirs, atol=2e-6, rtol=0)
        assert np.array_equal(pixel_values(image, spec).numpy(), pixel_array(image, spec))


def test_every_cut_is_theirs() -> None:
    """Odd sizes, which are cut one pixel off the middle."""
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 31, "width": 31}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    spec = PixelSpec(31, (0, 0, 0), (1, 1, 1), shortest_side=32)
    noise = np.random.default_rng(0)
    for size in ((40, 41), (41, 40), (33, 77), (90, 32), (32, 32), (20, 29)):
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        np.testing.assert_allclose(
            pixel_array(image, spec), processor(image, return_tensors="np")["pixel_values"][0], atol=1e-6
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PixelSpec(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))),
        (  # as the first releases of CLIP wrote it
            {"size": 224, "crop_size": 224, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
            PixelSpec(224, (0.5,) * 3, (0.25,) * 3, shortest_side=224),  # type: ignore[arg-type]
        ),
        (
            {"size": {"height": 384, "width": 384}, "resample": 2, "do_normalize": False},
            PixelSpec(224, (0.0,) * 3, (1.0,) * 3, resample="bilinear"),  # type: ignore[arg-type]
        ),
    ],
)
def test_settings_as_older_versions_wrote_them(settings: dict[str, Any], expected: PixelSpec, tmp_path: Path) -> None:
    assert published_pixels(processor_folder(tmp_path, settings), 224) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 224, "do_rescale": False}, "do_rescale must be true and rescale_factor 1/255"),
        ({"size": 224, "image_mean": [0.5], "image_std": [1]}, "invalid value"),
        ({"size": 224, "image_mean": [0.5] * 3, "image_std": [1, 1, 0]}, "expected numbers, the second above 0"),
        ({"size": 224, "resample": 9}, "invalid value"),
        ({"size": {"shortest_edge": 100}, "crop_size": 224}, "a shortest side of 100 pixels: expected 224 to 4096"),
    ],
)
def test_settings_that_cannot_be_met(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"preprocessor_config.json: .*{message}"):
        published_pixels(processor_folder(tmp_path, settings), 224)


def test_the_processor_of_a_whole_model(tmp_path: Path) -> None:
    """Its settings lie within processor_config.json."""
    settings = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert published_pixels(tmp_path, 8).mean == (0.1, 0.1, 0.1)


def test_a_strip_is_cut_before_it_is_resampled() -> None:
    """One pixel high and 100,000 wide: brought to 224 pixels whole it would have 22 million columns."""
    spec = PixelSpec(224, (0, 0, 0), (1, 1, 1), shortest_side=224)
    strip = np.zeros((1, 100_000, 3), np.uint8)
    strip[:, 49_990:50_010] = 255
    assert pixel_array(Image.fromarray(strip), spec).min() == 1
