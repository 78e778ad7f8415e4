"""A Flamingo of tiny random parts with a real alphabet, for tests of what is done with a model."""

import torch
from tiny_blip2 import TinyNet, byte_tokenizer

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec, LanguageModelSpec
from triptych.engines.torch import TorchFlamingo
from triptych.generate import Search
from triptych.models import FlamingoModel
from triptych.nn.configs import DecoderConfig
from triptych.nn.decoder import Decoder
from triptych.systems.configs import FlamingoConfig
from triptych.systems.flamingo import Flamingo
from triptych.tasks import FlamingoTasks


def tiny_flamingo(
    seed: int = 0, scale: float = 0.4, max_positions: int = 300, max_pictures: int | None = None
) -> FlamingoModel:
    """``scale``: of the random weights; 0 = as they begin when a model is trained. It writes letters."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    image_id, end_id = tokenizer.encode("\x01")[0], min(tokenizer.eos_ids)
    lm = Decoder(DecoderConfig(len(tokenizer), dim=16, layers=4, heads=2, ffn_dim=24, max_positions=max_positions))
    sizes = {"dim": 8, "latents": 3, "resampler_layers": 2, "heads": 2, "head_dim": 4, "ffn_factor": 2, "every": 2}
    model = Flamingo(FlamingoConfig(5, image_id, max_pictures=max_pictures, **sizes), TinyNet(), lm)
    with torch.no_grad():
        for parameter in model.parameters() if scale else ():
            parameter.normal_(0, scale).add_(parameter.ndim == 1)
    letters = {*tokenizer.encode("abcdefghijklmnopqrstuvwxyz"), end_id}
    search = Search(frozenset({end_id}), max_new_tokens=6, banned=frozenset(range(len(tokenizer))) - letters)
    config = CheckpointConfig(
        system="flamingo",
        model=model.config,
        encoder=EncoderSpec("tiny", stored=True, image_size=12),
        lm=LanguageModelSpec("tiny", stored=False, end_id=end_id),
    )
    return FlamingoModel(model.eval().requires_grad_(False), tokenizer, search, config)


def flamingo_tasks(max_positions: int = 300, max_pictures: int | None = None) -> FlamingoTasks:
    flamingo = tiny_flamingo(max_positions=max_positions, max_pictures=max_pictures)
    return FlamingoTasks(TorchFlamingo(flamingo, torch.device("cpu")), "tiny")
