"""The shipped models on both engines: the same texts, answers and matches, and no torch on the fast path."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import triptych
from triptych.data import Photo, open_dataset
from triptych.demo import EXAMPLES

pytestmark = pytest.mark.parts
DOG = EXAMPLES / "dog.jpg"
SHOT = f"{DOG}=a dax"


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list[Photo]:
    return [photo for photo in open_dataset(flickr8k, "val") if photo.captions][:8]


@pytest.mark.data
@pytest.mark.parametrize("name", ["sat", "flamingo", "blip2"])
def test_captions_of_validation_photos_agree(name: str, photos: list[Photo]) -> None:
    """In fp32 all of them, to the fourth digit; quantised nearly all."""
    pictures = [photo.image() for photo in photos]
    reference = triptych.load(name, device="cpu").caption(pictures)
    exact = triptych.load(name, precision="fp32").caption(pictures)
    quick = triptych.load(name).caption(pictures)
    assert [a.text for a in exact] == [a.text for a in reference]
    np.testing.assert_allclose([a.logprob for a in exact], [a.logprob for a in reference], atol=1e-3)
    same = [(a, b) for a, b in zip(quick, reference, strict=True) if a.text == b.text]
    assert len(same) >= 5
    np.testing.assert_allclose([a.logprob for a, _ in same], [b.logprob for _, b in same], atol=0.5)


@pytest.mark.parametrize(
    "command",
    [
        ["caption", str(DOG), "--model", "sat"],
        ["ask", str(DOG), "--question", "What is in the photo?"],
        ["compare", str(DOG), str(EXAMPLES / "riders.jpg"), "--question", "Which photo shows a dog?"],
        ["match", "--image", str(DOG), "--text", "a dog"],
        ["chat", str(DOG)],
        ["complete", "--image", str(DOG), "--shot", SHOT],
    ],
    ids=lambda command: command[0],
)
def test_commands_do_not_import_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom triptych.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, input="what is it?\n")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_library_is_made_and_searched_without_torch(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_bytes(DOG.read_bytes())
    library = str(tmp_path / "library")
    test_commands_do_not_import_torch(["index", str(tmp_path / "photos"), "--library", library])
    test_commands_do_not_import_torch(["find", "a dog", "--library", library])
