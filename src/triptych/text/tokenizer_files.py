"""Reading the files of a tokenizer that transformers saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import InputError
from triptych.io.files import read_bounded_text, read_json_object
from triptych.text import byte_level, sentencepiece

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

MAX_TEMPLATE = 1 << 20  # bytes
NAMED = ("bos", "eos", "unk", "pad")  # the special tokens that we use


def read_tokenizer(directory: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer in a directory, and the special tokens that its SentencePiece model names.

    ``settings``: the content of its tokenizer_config.json.

    Raises:
        InputError: the files are missing or cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        if (directory / "tokenizer.json").exists():
            return Tokenizer.from_file(str(directory / "tokenizer.json")), {}
        models = [directory / name for name in ("tokenizer.model", "spiece.model") if (directory / name).exists()]
        defaults: dict[str, str] = {}
        if models:
            model = sentencepiece.read_model(models[0])
            tokenizer = sentencepiece.build_tokenizer(model)
            ids = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id}
            defaults = {name: model.pieces[i] for name, i in ids.items() if 0 <= i < len(model.pieces)}
        elif not (directory / "vocab.json").exists():
            raise InputError(
                f"{directory} has no tokenizer: expected tokenizer.json, tokenizer.model, spiece.model, or vocab.json with "
                "merges.txt; copy them from the original model"
            )
        else:
            pre = "qwen2" if str(settings.get("tokenizer_class")).startswith("Qwen2") else "gpt-2"
            tokenizer = byte_level.from_files(directory / "vocab.json", directory / "merges.txt", pre)
        add_tokens(tokenizer, directory, settings)
        return tokenizer, defaults
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{directory} holds no usable tokenizer: {str(error)[:200]}") from None


def add_tokens(tokenizer: Tokenizer, directory: Path, settings: Mapping[str, Any]) -> None:
    """Add the tokens of tokenizer_config.json and added_tokens.json, whose ids follow those of the vocabulary.

    Raises:
        InputError: an id in between is missing.
    """
    from tokenizers import AddedToken

    by_id: dict[int, AddedToken] = {}
    for text, i in read_object(directory / "added_tokens.json").items():
        by_id[int(i)] = AddedToken(text, normalized=False, special=True)
    for i, fields in (settings.get("added_tokens_decoder") or {}).items():
        by_id[int(i)] = AddedToken(fields["content"], normalized=False, special=bool(fields.get("special")))
    for i in sorted(by_id):
        token = by_id[i]
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != i:
            raise InputError(
                f"{directory}: the added token {token.content!r} should have the id {i}, and ids before it are missing"
            )


def named_tokens(directory: Path, settings: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str | None]:
    """The text of each of ``NAMED``: from tokenizer_config.json, else special_tokens_map.json, else the tokenizer itself."""
    others = read_object(directory / "special_tokens_map.json")
    return {
        name: token_text(settings.get(f"{name}_token")) or token_text(others.get(f"{name}_token")) or defaults.get(name)
        for name in NAMED
    }


def chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template (Jinja); the default one if there are several."""
    if (path := directory / "chat_template.jinja").exists():
        return read_bounded_text(path, MAX_TEMPLATE)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if the file is missing. Raises InputError: it is not a JSON object."""
    return read_json_object(path) if path.exists() else {}


def token_text(token: Any) -> str | None:
    """The text of a token, which tokenizer_config.json gives as it is or as an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
