"""``convert``: the tutorial's pickled modules, read without their code; word maps; our own checkpoints in another width."""

import argparse
import json
import sys
import tracemalloc
import zipfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from triptych.checkpoints.locate import BUNDLED, load_config
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.tutorial import read_tutorial, read_word_map
from triptych.errors import InputError
from triptych.models import load_sat
from triptych.nn.cnn import ResNet101
from triptych.text.vocabulary import BOS, EOS, PAD, SPECIALS, UNK

REPEATS = (1, 2, 1, 1)  # a shorter ResNet-101: the same code, less time
FORMATS = {"zip": True, "legacy": False}  # of PyTorch from 1.6 on, and before
WORD_MAP = {f"word{i}": i for i in range(1, 17)} | {"<unk>": 17, "<start>": 18, "<end>": 19, "<pad>": 0}

TUTORIAL = """
import torch
from torch import nn
import torch.nn.functional as F


class Bottleneck(nn.Module):
    def __init__(self, dim, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        self.downsample = None
        if stride != 1 or dim != width * 4:
            self.downsample = nn.Sequential(nn.Conv2d(dim, width * 4, 1, stride, bias=False), nn.BatchNorm2d(width * 4))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Encoder(nn.Module):
    def __init__(self, repeats):
        super().__init__()
        stages = []
        for i, n in enumerate(repeats):
            dim, width = (64, 64) if i == 0 else (128 * 2**i, 64 * 2**i)
            rest = [Bottleneck(width * 4, width, 1) for _ in range(n - 1)]
            stages.append(nn.Sequential(Bottleneck(dim, width, 1 if i == 0 else 2), *rest))
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.resnet = nn.Sequential(*stem, *stages)
        self.adaptive_pool = nn.AdaptiveAvgPool2d((14, 14))

    def forward(self, images):
        return self.adaptive_pool(self.resnet(images)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, features, hidden, width):
        super().__init__()
        self.encoder_att, self.decoder_att = nn.Linear(features, width), nn.Linear(hidden, width)
        self.full_att = nn.Linear(width, 1)

    def forward(self, features, h):
        scores = self.full_att(F.relu(self.encoder_att(features) + self.decoder_att(h).unsqueeze(1))).squeeze(2)
        return (features * scores.softmax(1).unsqueeze(2)).sum(1)


class DecoderWithAttention(nn.Module):
    def __init__(self, attention, embed, hidden, vocabulary, features=2048):
        super().__init__()
        self.attention, self.embedding = Attention(features, hidden, attention), nn.Embedding(vocabulary, embed)
        self.dropout, self.decode_step = nn.Dropout(0.5), nn.LSTMCell(embed + features, hidden)
        self.init_h, self.init_c = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.f_beta, self.fc = nn.Linear(hidden, features), nn.Linear(hidden, vocabulary)

    def forward(self, features, captions):
        h, c, scores = self.init_h(features.mean(1)), self.init_c(features.mean(1)), []
        for word in self.embedding(captions).unbind(1):
            seen = self.f_beta(h).sigmoid() * self.attention(features, h)
            h, c = self.decode_step(torch.cat([word, seen], 1), (h, c))
            scores.append(self.fc(self.dropout(h)))
        return torch.stack(scores, 1)
"""


@pytest.fixture(autouse=True)
def short_resnet(monkeypatch):
    monkeypatch.setattr(ResNet101, "repeats", REPEATS)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A trained step of the tutorial's model, saved whole in both formats; its module is gone when the tests read it."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "models.py").write_text(TUTORIAL)
    sys.path.insert(0, str(folder))
    try:
        models = import_module("models")
        torch.manual_seed(0)
        encoder, decoder = models.Encoder(REPEATS).eval(), models.DecoderWithAttention(12, 10, 14, len(WORD_MAP)).eval()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        optimiser = torch.optim.Adam(decoder.parameters())
        pixels, captions = torch.randn(2, 3, 64, 64), torch.randint(len(WORD_MAP), (2, 6))
        decoder(encoder(pixels).detach(), captions).square().mean().backward()
        optimiser.step()
        with torch.no_grad():
            scores = decoder(encoder(pixels), captions)
        content = {"epoch": 3, "bleu-4": 0.24, "encoder": encoder, "decoder": decoder}
        content |= {"encoder_optimizer": None, "decoder_optimizer": optimiser}
        for name, zipped in FORMATS.items():
            torch.save(content, folder / f"{name}.pth.tar", _use_new_zipfile_serialization=zipped)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("models", None)
    (folder / "models.py").unlink()
    (folder / "WORDMAP.json").write_text(json.dumps(WORD_MAP))
    return SimpleNamespace(folder=folder, pixels=pixels, captions=captions, scores=scores)


@torch.no_grad()
@pytest.mark.parametrize("name", FORMATS)
def test_a_tutorial_checkpoint_answers_as_before(tutorial, tmp_path, name):
    word_map = tutorial.folder / "WORDMAP.json"
    report = convert_checkpoint(tutorial.folder / f"{name}.pth.tar", tmp_path / "sat", word_map)
    assert "models" not in sys.modules
    assert report.missing == ()
    assert {"encoder.resnet.0.weight", "decoder.attention.full_att.bias", "decoder.fc.weight"} <= {*report.mapped}
    assert len(report.mapped) == 5 * 20 + 19  # 20 convolutions with their batch norms; the decoder
    others = {key for key in report.ignored if not key.endswith(".num_batches_tracked")}
    assert others == {"epoch", "bleu-4", "encoder_optimizer", "decoder_optimizer"}

    sat = load_sat(tmp_path / "sat")
    vocabulary, rows = read_word_map(word_map)
    assert sat.vocabulary == vocabulary
    ours = torch.empty_like(rows)
    ours[rows] = torch.arange(len(rows))
    scores = sat.model(sat.model.encoder.trunk(tutorial.pixels), ours[tutorial.captions][:, None]).logits[:, 0]
    torch.testing.assert_close(scores[..., ours], tutorial.scores, atol=1e-4, rtol=1e-4)
    assert tutorial.scores.std(-1).min() > 0.01


@torch.no_grad()
def test_one_of_ours_is_written_again_in_half_the_bytes(tutorial, tmp_path):
    convert_checkpoint(tutorial.folder / "zip.pth.tar", tmp_path / "full", tutorial.folder / "WORDMAP.json")
    report = convert_checkpoint(tmp_path / "full", tmp_path / "half", half=True)
    full, half = load_sat(tmp_path / "full"), load_sat(tmp_path / "half")
    assert (set(report.mapped), report.missing, report.ignored) == ({*full.model.state_dict()}, (), ())
    size = [(tmp_path / name / "triptych.safetensors").stat().st_size for name in ("full", "half")]
    assert 1.9 < size[0] / size[1] < 2
    assert (half.vocabulary, half.search, half.config.card) == (full.vocabulary, full.search, full.config.card)
    for name, tensor in full.model.state_dict().items():
        assert torch.equal(half.model.state_dict()[name], tensor.half().float())
    with pytest.raises(InputError, match="own vocabulary"):
        convert_checkpoint(tmp_path / "full", tmp_path / "again", tutorial.folder / "WORDMAP.json")


def test_a_shipped_model_is_converted_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(Path("sat"), tmp_path / "copy")
    assert load_config(tmp_path / "copy").card == load_config(BUNDLED / "sat").card


def test_the_word_map_is_reordered(tutorial):
    vocabulary, rows = read_word_map(tutorial.folder / "WORDMAP.json")
    assert vocabulary.words == (*SPECIALS, *(f"word{i}" for i in range(1, 17)))
    assert rows[[PAD, BOS, EOS, UNK]].tolist() == [0, 18, 19, 17]
    assert rows[4:].tolist() == list(range(1, 17))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[1]", "is not a word map"),
        ('{"a": "0"}', "is not a word map"),
        ('{"a": 0, "b": 0}', "does not number its 2 words"),
        ('{"a": 0, "b": 1}', "has no <pad>"),
    ],
)
def test_a_bad_word_map_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "map.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_word_map(tmp_path / "map.json")


def test_what_does_not_fit_is_refused_and_nothing_written(tutorial, tmp_path, monkeypatch):
    source, target, word_map = tutorial.folder / "zip.pth.tar", tmp_path / "sat", tmp_path / "map.json"
    word_map.write_text(json.dumps(WORD_MAP | {"one-more": len(WORD_MAP)}))
    with pytest.raises(InputError, match=r"20 words in its embedding\.weight, 21 in the word map"):
        convert_checkpoint(source, target, word_map)
    with pytest.raises(InputError, match="--word-map"):
        convert_checkpoint(source, target)
    with pytest.raises(InputError, match="no such file"):
        convert_checkpoint(tmp_path / "absent.pth.tar", target, word_map)
    for repeats in ((1, 1, 1, 1), (1, 2, 1, 2)):
        monkeypatch.setattr(ResNet101, "repeats", repeats)
        with pytest.raises(InputError, match="its encoder is not a ResNet-101"):
            convert_checkpoint(source, target, tutorial.folder / "WORDMAP.json")
    assert not target.exists()


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("form", ["parallel", "state dicts", "named state dicts"])
def test_the_forms_people_save(tutorial, tmp_path, zipped, form):
    """Modules inside DataParallel, state dicts, and options of many kinds beside them."""
    path = tutorial.folder / "zip.pth.tar"
    whole, _ = read_tutorial(path)
    modules = {part: state_module(dict(state)) for part, state in whole.items()}
    states = {part: module.state_dict() for part, module in modules.items()}
    content = {
        "parallel": {part: nn.DataParallel(module) for part, module in modules.items()},
        "state dicts": states,
        "named state dicts": {f"{part}_state_dict": state for part, state in states.items()},
    }[form]
    content |= {"bleu-4": np.float64(0.2), "args": argparse.Namespace(a=1), "path": tmp_path, "d": torch.device("cpu")}
    torch.save(content, tmp_path / "a.pth.tar", _use_new_zipfile_serialization=zipped)
    parts, ignored = read_tutorial(tmp_path / "a.pth.tar")
    for part, state in whole.items():
        assert parts[part].keys() == state.keys()
        assert all(torch.equal(parts[part][key], tensor) for key, tensor in state.items())
    assert {"bleu-4", "args", "path", "d"} <= set(ignored)


def state_module(state):
    """A module with this state dict."""
    root = nn.Module()
    for key, tensor in state.items():
        *parents, leaf = key.split(".")
        inner = root
        for name in parents:
            if name not in inner._modules:
                inner.add_module(name, nn.Module())
            inner = inner._modules[name]
        inner.register_buffer(leaf, tensor)
    return root


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "a.pth.tar"
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no encoder and decoder"):
        read_tutorial(path)


def test_a_pickle_cannot_ask_for_memory_it_has_no_bytes_for(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth.tar", "w") as archive:
        archive.writestr("a/data.pkl", b"}r" + (1 << 24).to_bytes(4, "little") + b".")  # memo entry 16,777,216
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="no encoder and decoder"):
            read_tutorial(tmp_path / "a.pth.tar")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
