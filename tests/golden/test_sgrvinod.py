"""What the Show, Attend and Tell PyTorch tutorial returns on tiny random weights, against our decoder through ``convert``'s table.

``sgrvinod_decoder.safetensors`` holds the tutorial's ``state/*``, ``in/*`` and ``out/*``. It returns a batch sorted by length
(``out/sort_ind``), zeros after a caption's end, and from its beam search the best hypothesis that ended within 51 words.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from triptych.convert.tutorial import read_word_map, tutorial_config, tutorial_decoder
from triptych.generate import Search, beam_search
from triptych.systems.configs import ShowAttendTellConfig
from triptych.systems.show_attend_tell import CaptionDecoder
from triptych.text.vocabulary import BOS, EOS, PAD, UNK

PEER = Path(__file__).with_name("sgrvinod_decoder.safetensors")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    with safe_open(PEER, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["json"])
    sizes = meta["config"]
    words = [f"word{i}" for i in range(1, sizes["vocab_size"] - 3)]
    word_map = tmp_path_factory.mktemp("golden") / "WORDMAP.json"
    word_map.write_text(json.dumps({w: i for i, w in enumerate(["<pad>", *words, "<unk>", "<start>", "<end>"])}))
    _, rows = read_word_map(word_map)
    assert rows[[PAD, BOS, EOS, UNK]].tolist() == [0, meta["start"], meta["end"], meta["start"] - 1]
    state = tutorial_decoder({k[6:]: v for k, v in tensors.items() if k.startswith("state/")}, rows)
    config = ShowAttendTellConfig.tutorial(
        sizes["vocab_size"],
        sizes["encoder_dim"],
        embed_dim=sizes["embed_dim"],
        hidden_dim=sizes["decoder_dim"],
        attention_dim=sizes["attention_dim"],
    )
    assert tutorial_config(state) == config
    decoder = CaptionDecoder(config).eval()
    decoder.load_state_dict(state)
    ours = torch.empty_like(rows)
    ours[rows] = torch.arange(len(rows))  # the tutorial's id -> ours
    features = tensors["in/features"].flatten(1, 2)
    return SimpleNamespace(tensors=tensors, decoder=decoder, features=features, rows=rows, ours=ours)


def test_initial_states(golden):
    state = golden.decoder.start(golden.features, rows=1)
    torch.testing.assert_close(state.h[:, 0], golden.tensors["out/init.h"], atol=1e-5, rtol=0)
    torch.testing.assert_close(state.c[:, 0], golden.tensors["out/init.c"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_teacher_forcing(golden):
    tensors = golden.tensors
    output = golden.decoder(golden.features, golden.ours[tensors["in/captions"]][:, None, :-1])
    order = tensors["out/sort_ind"]
    assert order.tolist() != list(range(len(order)))
    mask = torch.arange(output.alpha.shape[2]) < tensors["out/decode_lengths"][:, None]
    scores, alpha = output.logits[order, 0][..., golden.ours], output.alpha[order, 0]
    torch.testing.assert_close(scores * mask[..., None], tensors["out/scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(alpha * mask[..., None], tensors["out/alphas"], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_beam_search(golden, beams):
    search = Search(frozenset({EOS}), max_new_tokens=51, beams=beams, n_best=beams, length_penalty=0.0)
    for photo, found in enumerate(beam_search(golden.decoder, golden.features, search)):
        ended = [hypothesis for hypothesis in found if hypothesis.finished]
        expected = golden.tensors.get(f"out/beam{beams}.ids.{photo}")
        if expected is None:
            assert not ended
            continue
        ids = torch.tensor([BOS, *ended[0].ids, EOS])
        assert golden.rows[ids].tolist() == expected.tolist()
        alpha = golden.decoder(golden.features[photo : photo + 1], ids[None, None, :-1]).alpha[0, 0]
        maps = golden.tensors[f"out/beam{beams}.alphas.{photo}"].flatten(1)[1:]  # the first, of <start>, is all ones
        torch.testing.assert_close(alpha, maps, atol=1e-5, rtol=0)
