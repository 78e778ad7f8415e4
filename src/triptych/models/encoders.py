"""Frozen image encoders with their published weights, and what a checkpoint says of one."""

from __future__ import annotations

from pathlib import Path

from triptych.checkpoints.config import EncoderSpec
from triptych.checkpoints.format import read_torch_pickle
from triptych.checkpoints.parts import PARTS, part_fingerprint, part_path
from triptych.errors import InputError
from triptych.nn.cnn import ENCODERS, ConvNet


def published_encoder(
    name: str, cut: int | None = None, weights: Path | None = None, image_size: int | None = None
) -> ConvNet:
    """An image encoder with its published weights.

    Args:
        name: ``efficientnet-lite2`` (embedded), ``vgg19`` or ``resnet101`` (``weights`` = torchvision's state dict, a .pth file).
        cut: the number of frozen layers; all when None.
        image_size: of the square that photos are brought to, in pixels; the encoder's own when None.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}: choose {', '.join(ENCODERS)}")
    embedded = {part.name for part in PARTS}
    if weights is not None and name in embedded:
        raise InputError(f"{name} is embedded with its own weights: leave out --encoder-weights")
    if weights is None and name not in embedded:
        raise InputError(f"{name} is not embedded: give torchvision's state dict of it with --encoder-weights")
    encoder = ENCODERS[name](cut, image_size)
    try:
        encoder.load_published(read_torch_pickle(weights or part_path(name)))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{weights} does not hold torchvision's {name}: {str(error).splitlines()[0]}") from None
    return encoder.eval()


def check_part(source: Path, spec: EncoderSpec) -> None:
    """Raises InputError: the encoder is no embedded part, or another version of it."""
    if spec.name not in {part.name for part in PARTS}:
        raise InputError(
            f"{source}: encoder.name is {spec.name!r}, which is neither stored in the checkpoint nor embedded"
        )
    if spec.sha256 != part_fingerprint(spec.name):
        raise InputError(f"{source} was trained over another {spec.name} than this version fetches")


def encoder_spec(encoder: ConvNet, whole: bool = False) -> EncoderSpec:
    """What a checkpoint says of a CNN. ``whole``: it stores the frozen layers as well, as always where they are no embedded part."""
    stored = whole or encoder.name not in {part.name for part in PARTS}
    sha256 = None if stored else part_fingerprint(encoder.name)
    return EncoderSpec(encoder.name, stored, sha256, encoder.image_size, encoder.cut)
