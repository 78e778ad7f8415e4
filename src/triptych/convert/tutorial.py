"""Show, Attend and Tell of the PyTorch tutorial: its ``BEST_checkpoint_*.pth.tar``.

It pickles whole modules, and a pickle may run any code, so ``ModulePickle`` reads it without importing or calling anything of the
file's: modules become bare namespaces, tensors stay in the file until the table asks for them.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor, nn

from triptych.checkpoints.config import Card
from triptych.checkpoints.format import LoadReport
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


def convert_tutorial(source: Path, target: Path, word_map: Path, dtype: torch.dtype) -> LoadReport:
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
        with torch.device("meta"):  # no memory for sizes that turn out not to fit
            model = ShowAttendTell(tutorial_config(decoder), encoder)
        model.decoder.load_state_dict(decoder, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{source} is not a checkpoint of the tutorial's model with these words: {why}") from None
    card = Card(recipe=f"converted from {source.name}, a checkpoint of the Show, Attend and Tell PyTorch tutorial")
    search = sat_search(beams=5, length_penalty=0.0, max_new_tokens=51)
    save_sat(target, SatModel.new(model, vocabulary, search, whole_encoder=True), card, dtype=dtype)
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


CONTAINERS = {
    (module, name): container
    for modules, name, container in (
        (("collections",), "OrderedDict", OrderedDict),
        (("collections",), "defaultdict", defaultdict),
        (("builtins", "__builtin__"), "dict", dict),
        (("builtins", "__builtin__"), "set", set),
    )
    for module in modules
}
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
}
STUBBED = ("models.", "torch.nn.", "torch.optim.", "torchvision.models.")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True, eq=False)
class Stored:
    """A pickled tensor: which storage of the file holds its numbers, and how they lie in it."""

    storage: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return abs(math.prod(self.size)) * self.dtype.itemsize


class ModulePickle(pickle._Unpickler):
    """Unpickles what ``torch.save`` wrote of whole modules, and runs none of their code.

    A module, an optimiser or anything else of the names in ``STUBBED`` becomes a namespace that holds its attributes; a tensor
    becomes a ``Stored``; the builtin containers are themselves; every other name is refused. The unpickler is the one in Python:
    the one in C takes gigabytes of memory for a few corrupted bytes (its memo is an array).
    """

    def __init__(self, file: IO[bytes], path: Path, largest: int) -> None:
        super().__init__(file)
        self.path, self.largest = path, largest
        self.storages: dict[str, int] = {}  # their bytes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self.parameter
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if f"{module}.".startswith(STUBBED):
            return SimpleNamespace
        raise InputError(f"{self.path} asks for {module}.{name}, which is refused: only modules and tensors are read")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or (before PyTorch 1.6) a module's class with its source code."""
        if pid[0] == "module":
            return pid[1]
        kind, dtype, key, _, length, *view = pid
        size = length * dtype.itemsize
        if kind != "storage" or any(view) or not 0 <= size <= self.largest:
            raise pickle.UnpicklingError("a storage that the file cannot hold")
        self.storages[key] = size
        return key, dtype

    def tensor(
        self, storage: tuple[str, torch.dtype], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Stored:
        return Stored(*storage, offset, size, stride)

    def parameter(self, data: Stored, *_: object) -> Stored:
        return data


def read_tutorial(path: Path) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """The state dicts of the encoder and the decoder, as far as the tables name their keys; the names of all else in the file.

    Raises:
        InputError: unreadable, corrupted, of another layout, or made of more than modules and tensors.
    """
    tables = {"encoder": TUTORIAL_ENCODER, "decoder": TUTORIAL_DECODER}
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content, read = (open_zip if zipped else open_legacy)(file, path)
            if not isinstance(content, dict) or not tables.keys() <= content.keys():
                raise InputError(f"{path} is not a checkpoint of the tutorial: it has no encoder and decoder")
            parts: dict[str, dict[str, Tensor]] = {}
            ignored, room = [key for key in content if key not in tables and isinstance(key, str)], file_size(file)
            for part, table in tables.items():
                stored = dict(tensors_in(content[part]))
                wanted = [key for key in rename(stored, table) if not key.endswith(".num_batches_tracked")]
                room -= sum(stored[key].bytes for key in wanted)
                if room < 0:
                    raise InputError(f"{path} has tensors larger than itself")
                parts[part] = {key: fetch(stored[key], read) for key in wanted}
                ignored += [f"{part}.{key}" for key in stored if key not in wanted]
            return parts, tuple(ignored)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # corrupted bytes can raise any exception there is
        raise InputError(f"{path} is not a PyTorch file, or is corrupted ({type(error).__name__})") from None


def open_zip(file: IO[bytes], path: Path) -> tuple[Any, Callable[[str], bytes]]:
    """What a file of PyTorch 1.6 or later pickles, and the reader of its storages."""
    archive = zipfile.ZipFile(file)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise InputError(f"{path} is compressed: PyTorch does not write such files")
    [name] = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = name.removesuffix(".pkl")
    content = ModulePickle(io.BytesIO(archive.read(name)), path, file_size(file)).load()
    return content, lambda key: archive.read(f"{folder}/{key}")


def open_legacy(file: IO[bytes], path: Path) -> tuple[Any, Callable[[str], bytes]]:
    """The same of an older PyTorch: five pickles in a row (magic, version, system, content, keys), then the storages."""
    pickles = [ModulePickle(file, path, file_size(file)) for _ in range(5)]
    if pickles[0].load() != LEGACY_MAGIC:
        raise InputError(f"{path} is not a PyTorch file")
    _, _, content, keys = (unpickler.load() for unpickler in pickles[1:])
    sizes, places = pickles[3].storages, {}
    for key in keys:
        places[key] = file.seek(8, os.SEEK_CUR)  # past the number of elements
        file.seek(sizes[key], os.SEEK_CUR)

    def read(key: str) -> bytes:
        file.seek(places[key])
        return file.read(sizes[key])

    return content, read


def tensors_in(module: Any, prefix: str = "") -> Iterable[tuple[str, Stored]]:
    """The state dict of an unpickled module. Takes the module apart, so that one nested in itself is walked through once."""
    if not isinstance(module, SimpleNamespace):
        return
    for kind in ("_parameters", "_buffers"):
        for name, value in vars(module).get(kind, {}).items():
            if isinstance(value, Stored):
                yield f"{prefix}{name}", value
    for name, child in vars(module).pop("_modules", {}).items():
        yield from tensors_in(child, f"{prefix}{name}.")


def fetch(stored: Stored, read: Callable[[str], bytes]) -> Tensor:
    """The tensor itself. RuntimeError: it reaches beyond its storage."""
    numbers = torch.frombuffer(bytearray(read(stored.storage)), dtype=stored.dtype)
    return numbers.as_strided(stored.size, stored.stride, stored.offset).clone(memory_format=torch.contiguous_format)


def file_size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
