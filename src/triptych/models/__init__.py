"""Whole systems on disk: what a checkpoint holds of each, and putting it together again with its frozen parts."""

from triptych.models.blip2 import Blip2Model, blip2_search, load_blip2, save_blip2
from triptych.models.encoders import encoder_spec, published_encoder, vision_encoder
from triptych.models.flamingo import FlamingoModel, load_flamingo, save_flamingo
from triptych.models.frozen import find_language_model, in_bfloat16, language_model_spec
from triptych.models.sat import SatModel, load_sat, sat_search, save_sat

__all__ = [
    "Blip2Model",
    "FlamingoModel",
    "SatModel",
    "blip2_search",
    "encoder_spec",
    "find_language_model",
    "in_bfloat16",
    "language_model_spec",
    "load_blip2",
    "load_flamingo",
    "load_sat",
    "published_encoder",
    "sat_search",
    "save_blip2",
    "save_flamingo",
    "save_sat",
    "vision_encoder",
]
