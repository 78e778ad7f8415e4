"""Show, Attend and Tell of the PyTorch tutorial: its ``BEST_checkpoint_*.pth.tar``, which pickles whole modules (``checkpoints.torch_file``
reads them without running anything).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.checkpoints.config import Card
from triptych.checkpoints.place import LoadReport, unallocated
from triptych.checkpoints.store import TensorStore, renamed
from triptych.checkpoints.torch_file import TorchFile
from triptych.errors import InputError
from triptych.models import SatModel, sat_search, save_sat
from triptych.nn.cnn import ResNet101
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import ShowAttendTell
from triptych.text.vocabulary import SPECIALS, WordVocabulary

TUTORIAL_DECODER = {
    "attention.encoder_att": "attention.annotation_proj",
    "attention.decoder_att": "attention.hidden_proj",
    "attention.full_att": "attention.score",
    "embedding": "embedding",
    "decode_step": "lstm",
    "init_h": "init_h",
    "init_c": "init_c",
    "f_beta": "beta",
    "fc": "output",
}
TUTORIAL_ENCODER = {  # its children by number -> torchvision's names
    "resnet.0": "conv1",
    "resnet.1": "bn1",
    "resnet.4": "layer1",
    "resnet.5": "layer2",
    "resnet.6": "layer3",
    "resnet.7": "layer4",
}


def convert_tutorial(source: Path, target: Path, word_map: Path, dtype: torch.dtype | None) -> LoadReport:
    """The SAT tutorial's encoder and decoder as one checkpoint, which keeps the whole encoder."""
    vocabulary, rows = read_word_map(word_map)
    parts, ignored = read_tutorial(source)
    published = tutorial_encoder(parts["encoder"])
    encoder = ResNet101().eval()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    if len(published) != 5 * convolutions:  # a weight, and the four tensors of its batch norm
        raise InputError(f"{source}: its encoder is not a ResNet-101")
    try:
        encoder.load_published(published)
        decoder = tutorial_decoder(parts["decoder"], rows)
        with unallocated():  # no memory for sizes that turn out not to fit
            model = ShowAttendTell(tutorial_config(decoder), encoder)
        model.decoder.load_state_dict(decoder, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{source} is not a checkpoint of the tutorial's model with these words: {why}") from None
    card = Card(recipe=f"converted from {source.name}, a checkpoint of the Show, Attend and Tell PyTorch tutorial")
    search = sat_search(beams=5, length_penalty=0.0, max_new_tokens=51)
    save_sat(target, SatModel.new(model, vocabulary, search, whole_encoder=True), card, dtype=dtype or torch.float32)
    return LoadReport(tuple(f"{part}.{key}" for part, state in parts.items() for key in state), (), ignored)


def rename(keys: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """Old key -> new key, of those keys whose prefix is in ``table``."""
    return {key: new + key[len(old) :] for key in keys for old, new in table.items() if key.startswith(f"{old}.")}


def tutorial_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the tutorial's ``Encoder`` under torchvision's names, as ``ResNet101.load_published`` takes it."""
    return {new: state[old].float() for old, new in rename(state, TUTORIAL_ENCODER).items()}


def tutorial_decoder(state: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The state dict of the tutorial's ``DecoderWithAttention`` as that of ``Decoder``.

    Args:
        rows: ``[V]``, the tutorial's id of each of our words (``read_word_map``).

    Raises:
        KeyError: the embedding or the output layer is not there.
        ValueError: they are not of V words.
    """
    ours = {new: state[old].float() for old, new in rename(state, TUTORIAL_DECODER).items()}
    for key in ("embedding.weight", "output.weight", "output.bias"):
        if len(ours[key]) != len(rows):
            raise ValueError(f"{len(ours[key])} words in its {key}, {len(rows)} in the word map")
        ours[key] = ours[key][rows]
    return ours


def tutorial_config(decoder: Mapping[str, Tensor]) -> ShowAttendTellConfig:
    """The sizes of a converted decoder, read off its tensors."""
    vocab_size, embed_dim = decoder["embedding.weight"].shape
    attention_dim, feature_dim = decoder["attention.annotation_proj.weight"].shape
    _, hidden_dim = decoder["lstm.weight_hh"].shape
    sizes = {"embed_dim": embed_dim, "hidden_dim": hidden_dim, "attention_dim": attention_dim}
    return ShowAttendTellConfig.tutorial(vocab_size, feature_dim, **sizes)


def read_word_map(path: Path) -> tuple[WordVocabulary, Tensor]:
    """The tutorial's ``{word: id}`` (pad first; unk, start and end last) as our vocabulary, and ``rows [V]``: its id of each word.

    Raises:
        InputError: unreadable, or not a numbering of words that has the four special ones.
    """
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(ids, dict) or {type(i) for i in ids.values()} != {int}:
        raise InputError(f"{path} is not a word map: it should give each word its number")
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{path} does not number its {len(ids)} words from 0 to {len(ids) - 1}")
    if absent := [word for word in SPECIALS if word not in ids]:
        raise InputError(f"{path} has no {absent[0]}: it is not the word map of the tutorial")
    words = sorted(ids, key=lambda word: (SPECIALS.index(word) if word in SPECIALS else len(SPECIALS), ids[word]))
    return WordVocabulary(tuple(words)), torch.tensor([ids[word] for word in words])


def read_tutorial(path: Path) -> tuple[dict[str, TensorStore], tuple[str, ...]]:
    """The tensors of the encoder and the decoder, as far as the tables name their keys; the names of all else in the file.

    Both may be whole modules (as the tutorial saves them), perhaps inside DataParallel, or state dicts.

    Raises:
        InputError: unreadable, corrupted or of another layout.
    """
    tables = {"encoder": TUTORIAL_ENCODER, "decoder": TUTORIAL_DECODER}
    file = TorchFile(path)
    content = file.content if isinstance(file.content, Mapping) else {}
    states = {part: file.state(content.get(part, content.get(f"{part}_state_dict"))) for part in tables}
    if not all(part in content or f"{part}_state_dict" in content for part in tables):
        raise InputError(f"{path} is not a checkpoint of the tutorial: it has no encoder and decoder")
    parts: dict[str, TensorStore] = {}
    ignored = [key for key in content if isinstance(key, str) and key.removesuffix("_state_dict") not in tables]
    for part, table in tables.items():
        wanted = [key for key in rename(states[part], table) if not key.endswith(".num_batches_tracked")]
        parts[part] = renamed(states[part], {key: key for key in wanted})
        ignored += [f"{part}.{key}" for key in states[part] if key not in wanted]
    return parts, tuple(ignored)
