"""Uploads to the hub: one commit with a model card. The hub is a fake one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from test_cli import run  # noqa: F401
from tiny_blip2 import tiny_blip2

from triptych.checkpoints.config import Card
from triptych.convert.push import licence_id, model_card, push
from triptych.errors import InputError, TriptychError
from triptych.models import save_blip2

FIGURES = {"flickr8k": {"CIDEr-D": 55.5, "BLEU-4": 21.0}, "note": "none"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = Card(name="tiny", licence="Apache-2.0", recipe="trained in a test", test=FIGURES)
    save_blip2(tmp_path / "tiny", tiny_blip2(), card)
    return tmp_path / "tiny"


class FakeHub:
    """``HfApi``, which keeps what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.repos, self.commits = error, [], []  # type: ignore[var-annotated]

    def create_repo(self, name: str, **settings: Any) -> None:
        if self.error:
            raise self.error
        self.repos.append((name, settings))

    def create_commit(self, name: str, operations: list[Any], commit_message: str) -> Any:
        self.commits.append((name, {operation.path_in_repo: operation.path_or_fileobj for operation in operations}))
        return SimpleNamespace(commit_url=f"https://hub/{name}/commit/1")


def test_files_and_a_card_in_one_commit(
    model: Path,
    run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    result = run("push", model, "me/tiny", "--private", "--base-model", "a/base")
    assert result.code == 0 and result.out == "https://hub/me/tiny/commit/1\n"
    assert hub.repos == [("me/tiny", {"private": True, "exist_ok": True})]
    ((name, files),) = hub.commits
    assert name == "me/tiny"
    assert files.keys() == {"README.md", *(path.name for path in model.iterdir())}
    card = files["README.md"].decode()
    front = card.split("---\n")[1].splitlines()
    assert 'license: "apache-2.0"' in front and 'base_model: ["a/base"]' in front
    assert 'pipeline_tag: "image-to-text"' in front and 'library_name: "triptych"' in front
    assert "| flickr8k CIDEr-D | 55.5 |" in card and "--model me/tiny" in card and "none" not in card


@pytest.mark.parametrize(
    ("name", "form", "error", "kind", "message"),
    [
        ("tiny", "triptych", None, InputError, "expected OWNER/NAME"),
        ("me/tiny", "gguf", None, InputError, "unknown format 'gguf': expected triptych or hf"),
        ("me/tiny", "hf", None, InputError, "reads photos with the CNN"),
        ("me/tiny", "triptych", LocalTokenNotFoundError("x"), InputError, "run `hf auth login`, or set HF_TOKEN"),
        ("me/tiny", "triptych", OSError("no\nnetwork"), TriptychError, "the hub did not take me/tiny: no"),
    ],
)
def test_one_line_where_it_fails(
    model: Path,
    name: str,
    form: str,
    error: Exception | None,
    kind: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = FakeHub(error)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    with pytest.raises(kind, match=message):
        push(model, name, form)
    assert not hub.commits


def test_licences_that_the_hub_has_no_name_for() -> None:
    assert [licence_id(name) for name in ("CC BY-SA 4.0", "my own", None)] == ["cc-by-sa-4.0", "other", "unknown"]
    config = tiny_blip2().config
    assert 'license_name: "my own"' in model_card(
        type(config)(system="blip2", model=config.model, encoder=config.encoder, card=Card(licence="my own")),
        "a/b",
        "hf",
    )
