"""Shared fixtures: the real photos beside a checkout, where they are."""

import gc
import os
from pathlib import Path
from secrets import token_hex

import pytest

DATA = Path(os.environ.get("TRIPTYCH_DATA", Path(__file__).parents[2] / "shared" / "data"))

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token_hex())  # Ray reads them once in a process

gc.disable()  # it takes a quarter of the collection of the tests, and finds nothing there


def pytest_collection_finish() -> None:
    gc.enable()


def dataset(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}: set TRIPTYCH_DATA to the folder that holds it")
    return DATA / name


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    return dataset("flickr8k")


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return dataset("coco-mini")


@pytest.fixture(scope="session")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model as a GGUF file."""
    from tiny_decoder import random_decoder
    from tiny_gguf import GGUF_CONFIG, write_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_decoder(GGUF_CONFIG))
    return path
