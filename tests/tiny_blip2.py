"""A BLIP-2 of tiny random parts with real alphabets, for tests of what is done with a model."""

from collections.abc import Sequence

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn

from triptych.checkpoints.config import CheckpointConfig, EncoderSpec, LanguageModelSpec
from triptych.engines.torch import TorchBlip2
from triptych.generate import Search
from triptych.models import Blip2Model
from triptych.nn.cnn import ConvNet
from triptych.nn.configs import DecoderConfig, QFormerConfig
from triptych.nn.decoder import Decoder, Prompt
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.tasks import Blip2Tasks
from triptych.tasks.blip2 import PhotoPrompt
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import WordPieces

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WHOLE = ("the", "is", "on", "grass", "one", "running", "dog", "horse", "cat", "bird")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "?", *LETTERS, *(f"##{c}" for c in LETTERS), *WHOLE)


class TinyNet(ConvNet):
    name, dim, image_size, grid = "tiny", 5, 12, (3, 3)

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 5, 4, 4)])


def byte_tokenizer() -> TextTokenizer:
    """Every byte is a token; the last id ends a text."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE({**alphabet, "<end>": len(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = len(alphabet)
    return TextTokenizer(tokenizer, {"<end>": end}, eos_ids=frozenset({end}))


def tiny_blip2(with_lm: bool = True, seed: int = 0, scale: float = 0.3) -> Blip2Model:
    """``scale``: of the random weights; 0 = as they begin when a model is trained."""
    torch.manual_seed(seed)
    words, tokenizer = WordPieces(WORDS), byte_tokenizer()
    qformer = QFormerConfig(5, 16, 4, 2, 24, queries=3, vocab_size=len(words), max_positions=64, dropout=0.0)
    lm = (
        Decoder(DecoderConfig(len(tokenizer), dim=16, layers=2, heads=2, ffn_dim=24, max_positions=300))
        if with_lm
        else None
    )
    model = Blip2(Blip2Config(qformer, feature_dim=8, contrast_weight=7.0), TinyNet(), lm)
    with torch.no_grad():
        for parameter in model.parameters() if scale else ():
            parameter.normal_(0, scale).add_(parameter.ndim == 1)
    search = Search(tokenizer.eos_ids if with_lm else frozenset(), max_new_tokens=6)
    config = CheckpointConfig(
        system="blip2",
        model=model.config,
        encoder=EncoderSpec("tiny", stored=True, image_size=12),
        lm=LanguageModelSpec("tiny", stored=False) if with_lm else None,
    )
    return Blip2Model(model.eval().requires_grad_(False), words, tokenizer if with_lm else None, search, config)


def blip2_tasks(name: str = "tiny", with_lm: bool = True) -> Blip2Tasks:
    return Blip2Tasks(TorchBlip2(tiny_blip2(with_lm), torch.device("cpu")), name)


def read_prompt(tasks: Blip2Tasks, text: str, photos: Sequence[Image.Image], question: str | None = None) -> Prompt:
    """A prompt as the language model of the torch engine reads it."""
    (row,) = tasks.read([PhotoPrompt(text, photos, question)])
    return tasks.engine.model.prompt([tasks.engine.tensors(row.pieces)])
