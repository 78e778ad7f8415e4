"""The checkpoints that this engine can run; the reference engine runs all others."""

from __future__ import annotations

from dataclasses import fields

from triptych.checkpoints.config import EncoderSpec
from triptych.nn import efficientnet
from triptych.nn.configs import DecoderConfig
from triptych.systems.configs import Blip2Config, FlamingoConfig, ShowAttendTellConfig


class NotCoveredError(Exception):
    """This engine cannot run the checkpoint; the message names the part that it does not cover."""


VARIED = frozenset(  # settings that may have any value (Llama, OPT, GPT-NeoX, MPT, Qwen 2); all others must be Llama's, the defaults
    (
        *("vocab_size", "dim", "layers", "heads", "ffn_dim", "kv_heads", "head_dim", "max_positions"),
        *("positions", "rotary_dim", "rope_theta", "rope_factors", "alibi_bias_max", "parallel"),
        *("norm", "norm_bias", "eps", "activation", "gated", "qkv_bias", "out_bias", "ffn_bias", "tied"),
    )
)
"""Not covered: windows and layers that differ from one another (Gemma, the first Mistral, SmolLM3), norms of queries and keys (Qwen 3,
OLMo 2) and norms after the sublayers, which the runtime's attention lacks or no test model needs; embeddings of another width than the
blocks (OPT-350m) or scaled ones (Gemma); T5, which has an encoder."""


def check_language_model(name: str, config: DecoderConfig) -> None:
    """Raises NotCoveredError: a part that the graph does not have, or a width of heads that the runtime's attention does not support."""
    known = all(getattr(config, field.name) == field.default for field in fields(config) if field.name not in VARIED)
    if not known or config.head_width % 16 or config.rotary_width % 16:
        raise NotCoveredError(f"the language model {name}")


def check_encoder(spec: EncoderSpec) -> None:
    """Raises NotCoveredError: another encoder than EfficientNet-Lite2; vision transformers, VGG-19 and ResNet-101 have no graphs."""
    if spec.name != efficientnet.ENCODER_NAME:
        raise NotCoveredError(f"the image encoder {spec.name}")


def check_sat(config: ShowAttendTellConfig, cut: int) -> None:
    """Raises NotCoveredError: attention is hard, or the whole encoder is frozen."""
    if config.attention != "soft":
        raise NotCoveredError("hard attention")
    if cut == len(efficientnet.LAYERS):
        raise NotCoveredError("an image encoder without layers of its own")


FLAMINGO_SIZES = frozenset(
    ("image_dim", "image_id", "dim", "latents", "resampler_layers", "heads", "head_dim", "ffn_factor", "every")
)
"""Settings of Flamingo that may have any value. The others must be the defaults: there is no graph for text that attends to all pictures,
for embeddings of pictures or frames, for IDEFICS's blocks, and for norms and gates like theirs."""


def check_flamingo(config: FlamingoConfig) -> None:
    """Raises NotCoveredError: a variant without a graph."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in FLAMINGO_SIZES and value != field.default:
            raise NotCoveredError(f"a Flamingo with {field.name} {value!r}")


def check_blip2(config: Blip2Config) -> None:
    """Raises NotCoveredError: the Q-Former reads no text."""
    if not config.qformer.vocab_size:
        raise NotCoveredError("a Q-Former that reads no text")
