"""Frozen image encoders with their published weights, and what a checkpoint says of one."""

from __future__ import annotations

from pathlib import Path

from triptych.checkpoints.config import EncoderSpec
from triptych.checkpoints.hub import local_path
from triptych.checkpoints.parts import PARTS, part_fingerprint, part_path
from triptych.checkpoints.vision import read_vision_encoder
from triptych.checkpoints.weight_files import open_file
from triptych.errors import InputError
from triptych.logits import to_numpy
from triptych.nn.cnn import ENCODERS, ConvNet, EfficientNetLite
from triptych.nn.vit import ViT
from triptych.text.consensus import QuantizedLinear


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
        encoder.load_published(open_file(weights or part_path(name)))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{weights} does not hold torchvision's {name}: {str(error).splitlines()[0]}") from None
    return encoder.eval()


def published_classifier(name: str) -> QuantizedLinear | None:
    """What an embedded encoder calls ImageNet's 1,000 classes by: the layer behind its pooled features. None: the encoder is not embedded,
    or a vision transformer."""
    if name != EfficientNetLite.name:
        return None
    state = open_file(part_path(name))
    return QuantizedLinear.of(to_numpy(state["_fc.weight"]), to_numpy(state["_fc.bias"]))


def vision_encoder(name: str, weights: Path | None = None, image_size: int | None = None) -> ConvNet | ViT:
    """A ``published_encoder``, or a CLIP, SigLIP, DINOv2 or ViT of transformers' or timm's: ``name`` is a directory or a model on the hub.

    Raises:
        InputError: there is none of this name, or it cannot be read.
    """
    if name in ENCODERS:
        return published_encoder(name, weights=weights, image_size=image_size)
    directory = local_path(name)
    if not directory.is_dir():
        known = ", ".join(ENCODERS)
        raise InputError(
            f"unknown encoder {name!r}: choose {known}, or a directory of transformers or timm, or a model on the hub (CLIP, SigLIP, "
            "DINOv2, ViT)"
        )
    if weights is not None:
        raise InputError(f"{name} holds its own weights: leave out --encoder-weights")
    return read_vision_encoder(directory, image_size)


def check_part(source: Path, spec: EncoderSpec) -> None:
    """Raises InputError: the encoder is no embedded part, or another version of it."""
    if spec.name not in {part.name for part in PARTS}:
        raise InputError(
            f"{source}: encoder.name is {spec.name!r}, which is neither stored in the checkpoint nor embedded"
        )
    if spec.sha256 != part_fingerprint(spec.name):
        raise InputError(f"{source} was trained over another {spec.name} than this version fetches")


def vit_spec(vit: ViT) -> EncoderSpec:
    """What a checkpoint says of a vision transformer that it stores."""
    own = vit.pixels
    return EncoderSpec(
        vit.name,
        True,
        image_size=own.size,
        vit=vit.config,
        mean=own.mean,
        std=own.std,
        shortest_side=own.shortest_side,
        resample=own.resample,
    )


def encoder_spec(encoder: ConvNet | ViT, whole: bool = False) -> EncoderSpec:
    """What a checkpoint says of an encoder. ``whole``: it stores the frozen layers as well, as always where they are no embedded part."""
    if isinstance(encoder, ViT):
        return vit_spec(encoder)
    stored = whole or encoder.name not in {part.name for part in PARTS}
    sha256 = None if stored else part_fingerprint(encoder.name)
    return EncoderSpec(encoder.name, stored, sha256, encoder.image_size, encoder.cut)
