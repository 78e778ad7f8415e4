"""Which checkpoints this engine can run; the reference engine runs the others."""

from __future__ import annotations

from dataclasses import fields

from triptych.checkpoints.config import EncoderSpec
from triptych.nn import efficientnet
from triptych.nn.configs import DecoderConfig
from triptych.systems.configs import Blip2Config, FlamingoConfig, ShowAttendTellConfig


class NotCoveredError(Exception):
    """This engine cannot run the checkpoint; the message names what stands in the way."""


VARIED = frozenset(  # what the graph takes as it is; all else must be as in Llama, the default
    (
        *("vocab_size", "dim", "layers", "heads", "ffn_dim", "kv_heads", "head_dim", "max_positions"),
        *("rope_theta", "rope_factors", "eps", "qkv_bias", "out_bias", "ffn_bias", "tied"),
    )
)


def check_language_model(name: str, config: DecoderConfig) -> None:
    """Raises NotCoveredError: it is not laid out as Llama, or has heads that the runtime's attention does not take."""
    like_llama = all(
        getattr(config, field.name) == field.default for field in fields(config) if field.name not in VARIED
    )
    if not like_llama or config.head_width % 16:
        raise NotCoveredError(f"the language model {name}")


def check_encoder(spec: EncoderSpec) -> None:
    """Raises NotCoveredError: it is another than the embedded one."""
    if spec.name != efficientnet.ENCODER_NAME:
        raise NotCoveredError(f"the image encoder {spec.name}")


def check_sat(config: ShowAttendTellConfig, cut: int) -> None:
    """Raises NotCoveredError: attention is hard, or the whole encoder is frozen."""
    if config.attention != "soft":
        raise NotCoveredError("hard attention")
    if cut == len(efficientnet.LAYERS):
        raise NotCoveredError("an image encoder without layers of its own")


def check_flamingo(config: FlamingoConfig) -> None:
    """Raises NotCoveredError: text attends to all pictures, or a picture's position makes a difference."""
    if config.look != "last" or config.max_pictures or config.max_frames:
        raise NotCoveredError("text that attends to other pictures than the last, and positions of pictures")


def check_blip2(config: Blip2Config) -> None:
    """Raises NotCoveredError: the Q-Former reads no text."""
    if not config.qformer.vocab_size:
        raise NotCoveredError("a Q-Former that reads no text")
