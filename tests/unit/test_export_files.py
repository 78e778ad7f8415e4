"""Out as LAVIS's and OpenFlamingo's files: the keys, shapes and numbers of the files that came in; what cannot be held is refused."""

from pathlib import Path

import pytest
import torch
from test_convert_flamingo import OVER, flamingo_state, language_model, lm_directory
from test_convert_lavis import in_lavis_layout, own_words, save_opt, stage1, stage2  # noqa: F401
from test_convert_lavis import saved as saved_lavis
from tiny_blip2 import byte_tokenizer
from tiny_openflamingo import saved as saved_flamingo
from torch import Tensor

from triptych.checkpoints.locate import BUNDLED
from triptych.convert.checkpoint import convert_checkpoint
from triptych.convert.export import export_checkpoint
from triptych.errors import InputError

BUFFER = "Qformer.bert.embeddings.position_ids"


def assert_same(theirs: dict[str, Tensor], original: dict[str, Tensor]) -> None:
    assert theirs.keys() == original.keys()
    for name, tensor in original.items():
        assert theirs[name].shape == tensor.shape and torch.equal(theirs[name], tensor), name


def test_lavis_first_stage(tmp_path: Path) -> None:
    original = in_lavis_layout(stage1())
    convert_checkpoint(saved_lavis(tmp_path / "theirs.pth", original), tmp_path / "ours")
    count = export_checkpoint(tmp_path / "ours", tmp_path / "out" / "blip2.pth", "lavis")
    written = torch.load(tmp_path / "out" / "blip2.pth", weights_only=True)["model"]
    assert count == len(written)
    assert_same(written, {name: tensor for name, tensor in original.items() if name != BUFFER})
    with pytest.raises(InputError, match="is there: name another file"):
        export_checkpoint(tmp_path / "ours", tmp_path / "out" / "blip2.pth", "lavis")


def test_lavis_second_stage(tmp_path: Path) -> None:
    """The frozen language model stays outside."""
    model, tokenizer = stage2()
    original, lm = in_lavis_layout(model), save_opt(tmp_path / "opt", model.lm, tokenizer)  # type: ignore[arg-type]
    convert_checkpoint(saved_lavis(tmp_path / "theirs.pth", original), tmp_path / "ours", lm=lm)
    export_checkpoint(tmp_path / "ours", tmp_path / "blip2.pth", "lavis")
    assert_same(torch.load(tmp_path / "blip2.pth", weights_only=True)["model"], original)


@pytest.mark.parametrize("kind", ["llama", "mpt", "gpt_neox"])
def test_open_flamingo(tmp_path: Path, kind: str) -> None:
    """Without CLIP, which it leaves out; word embeddings, since two tokens were added to them."""
    lm = language_model(kind)
    original, folder = flamingo_state(kind, lm), lm_directory(tmp_path / kind, lm, byte_tokenizer().tokenizer)
    convert_checkpoint(saved_flamingo(tmp_path / "theirs.pt", original), tmp_path / "ours", lm=folder)
    export_checkpoint(tmp_path / "ours", tmp_path / "checkpoint.pt", "openflamingo")
    written = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    trained = {name: x for name, x in original.items() if "perceiver" in name or "gated_cross" in name}
    embeddings = f"lang_encoder.{OVER[kind][2]}.weight"
    assert_same(written, trained | {embeddings: original[embeddings]})


def test_what_cannot_be_held(tmp_path: Path) -> None:
    for name, form, message in (
        ("blip2", "lavis", "the CNN efficientnet-lite2, for which LAVIS has no place"),
        ("sat", "lavis", "holds a sat model, and --format lavis is for blip2 models"),
        ("flamingo", "openflamingo", "and OpenFlamingo with a CLIP alone"),
        ("blip2", "gguf", "unknown format 'gguf': expected hf, lavis, openflamingo or onnx"),
    ):
        with pytest.raises(InputError, match=message):
            export_checkpoint(BUNDLED / name, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
