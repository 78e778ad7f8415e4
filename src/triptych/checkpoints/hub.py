"""Models on the Hugging Face hub: fetched by ``huggingface_hub`` into its own cache, and nothing but weights and settings of them.

Its environment variables apply: ``HF_HOME`` (where the cache lies), ``HF_HUB_OFFLINE`` (use the cache alone), ``HF_TOKEN`` (gated models).
"""

from __future__ import annotations

import re
from pathlib import Path

from triptych.checkpoints.locate import existing_or_backup
from triptych.checkpoints.parts import PARTS, part_path
from triptych.errors import InputError

MODEL_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
HUB_PAGE = re.compile(
    r"(?:https?:/{1,2})?(?:huggingface|hf)\.co/(?P<id>[^/]+/[^/]+)(?:/\w+/(?P<revision>[^/]+))?(?:/.*)?"
)
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "qformer_tokenizer/*")
CHECKPOINT_FILE = "checkpoint.pt"  # all that its repositories hold
SAFE, PICKLED = ("*.safetensors",), ("pytorch_model*.bin", CHECKPOINT_FILE)
AGAIN = ("consolidated*", "original/*")  # the same weights in another project's layout
CACHED = re.compile(r"models--(.+?)--(.+)")
FILE_ENDINGS = (".gguf", ".safetensors", ".pth", ".pt", ".tar", ".bin", ".json")  # no model is called so: it is a path


def is_model_id(name: str) -> bool:
    """Whether a name looks like ``owner/name`` or ``owner/name@revision``."""
    return MODEL_ID.fullmatch(name) is not None and not name.endswith(FILE_ENDINGS)


def named_model(name: str) -> str:
    """``owner/name`` or ``owner/name@revision`` of the address of a model's page on the hub; any other name itself, without a slash at
    its end."""
    if page := HUB_PAGE.fullmatch(name):
        return page["id"] + (f"@{page['revision']}" if page["revision"] else "")
    return name.rstrip("/") or name


def local_path(name: str | Path) -> Path:
    """What a person means by a name: a file or folder that is there, the files of a folder of the hub's cache, or a model on the hub (or
    its page), which is fetched. Any other name comes back as a path.

    Raises:
        InputError: as ``fetch_model``, ``snapshot_in``.
    """
    path = existing_or_backup(Path(name).expanduser())
    if path.is_dir() and CACHED.fullmatch(path.name):
        return snapshot_in(path)
    model = named_model(str(name))
    return fetch_model(model) if not path.exists() and is_model_id(model) else path


def cached_id(path: Path) -> str | None:
    """The ``owner/name`` of a model whose files lie at ``path`` in a cache of the hub's; None = they lie elsewhere."""
    match = next((match for part in path.parts if (match := CACHED.fullmatch(part))), None)
    return f"{match[1]}/{match[2]}" if match else None


def fetch_model(name: str) -> Path:
    """The folder with the files of ``owner/name[@revision]``, in the hub's cache; what is there already is not fetched again.

    Safetensors are taken where there are any, else PyTorch's files; never code.

    Raises:
        InputError: there is no such model or revision, it is gated, the network is down or off and the cache has it not.
    """
    match = MODEL_ID.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name!r} is not the name of a model on the hub: they read owner/name, or owner/name@revision"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> Path:
        allowed, ignored = list(patterns), list(AGAIN)
        return Path(
            snapshot_download(match["id"], revision=match["revision"], allow_patterns=allowed, ignore_patterns=ignored)
        )

    try:
        folder = fetch((*SETTINGS, *SAFE))
        return folder if any(folder.glob("*.safetensors")) else fetch((*SETTINGS, *PICKLED))
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name} is not in the hub's cache, and the hub does not answer (is there a network? is HF_HUB_OFFLINE set?)"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"cannot get {name} from the hub: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What to do about an error of the hub's."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "it is gated: ask for access on its page, and set HF_TOKEN"
    if kind == "RepositoryNotFoundError":
        return "there is no such model, or it is private: check the name, or set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return "it has no such revision"
    return " ".join(str(error).split())[:200] or kind


def snapshot_in(folder: Path) -> Path:
    """The files of a model in its folder of the hub's cache (``models--OWNER--NAME``): those of the branch main, else the latest.

    Raises:
        InputError: none were downloaded.
    """
    main = folder / "refs" / "main"
    if main.is_file() and (snapshot := folder / "snapshots" / main.read_text().strip()).is_dir():
        return snapshot
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    if not snapshots:
        raise InputError(f"{folder} is a folder of the hub's cache with no files of the model: download it again")
    return max(snapshots, key=lambda path: path.stat().st_mtime)


def language_model_path(name: str, near: Path | None = None) -> Path:
    """Where a language model lies: an embedded part, a GGUF file, a folder of transformers', or a model on the hub (``owner/name``).

    Args:
        near: a checkpoint that names it. What is not where it was is looked for in that folder and beside it, and, where it came from a
            cache of the hub's, on the hub.

    Raises:
        InputError: it is nowhere; or as ``fetch_model``.
    """
    if name in {part.name for part in PARTS}:
        return part_path(name)
    named = Path(name).expanduser()
    if near is None or named.exists():
        return local_path(name)
    places = (folder / named.name for folder in (near, near.parent))
    if there := next((path for path in places if path.exists()), None):
        return there
    if model := name if is_model_id(name) else cached_id(named):
        return local_path(model)
    raise InputError(
        f"{near} was trained over the language model {name}, which is not there: put {named.name} beside {near.name}"
    )
