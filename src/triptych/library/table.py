"""The library on disk: one LanceDB table with a row a photo. Every write is one commit, so a reader sees all of it or nothing.

The table's metadata, written with it, name the model and the format. A path is stored as bytes (a file's name need not be
text), absolute: a library may hold several folders. Features are fp16, which loses nothing that the ranking
shows. Libraries of format 1 hold no pooled features, nor do those of models without a consensus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InputError, TriptychError
from triptych.extras import importing

if TYPE_CHECKING:
    from lancedb.table import Table

LIBRARY_FORMAT, OLD_FORMAT = "2", "1"
NAME = "photos"
OLD_VERSIONS_KEPT = timedelta(minutes=10)  # old versions of the table, for those who still read them
DELETED_TOGETHER = 500

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # a letter alone is a drive
NO_SPACE = re.compile("no space left|os error 28|disk (?:is )?full|quota exceeded", re.I)

Half = NDArray[np.float16]
Shape = tuple[int, int, int]  # Q, E, D


class SearchFeatures(NamedTuple):
    """Of a photo, or of N: features for contrast ``[..., Q, E]``, pooled features ``[..., D]``."""

    contrast: Half
    pooled: Half


@dataclass(frozen=True)
class Stamp:
    """What tells without reading a file that it is as it was."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PhotoRow:
    path: str
    stamp: Stamp
    sha256: str


@contextmanager
def writing(library: str | os.PathLike[str]) -> Iterator[None]:
    """Make the library's folder if it is missing, and keep other writers out; the lock ends with the process that holds it.

    Raises TriptychError where the disk is full, InputError for what is no folder that can be written.
    """
    check_location(library)
    import filelock

    lock = filelock.FileLock(Path(library) / ".index.lock", timeout=0)
    try:
        Path(library).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise TriptychError(
            f"{library}: another process is indexing into this library; wait until it is done"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{library}: is a file, and a library is a folder; name another") from None
    except OSError as error:
        raise InputError(f"{library}: cannot write into this folder: {error.strerror}") from None
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # LanceDB's failures come as any of these
        if NO_SPACE.search(str(error)) is None:
            raise
        raise TriptychError(f"{library}: the disk is full; free some space and index again") from None
    finally:
        lock.release()


def check_location(library: str | os.PathLike[str]) -> None:
    """Raises InputError: ``library`` is no path of a folder, but an address that LanceDB would take for another place."""
    name = os.fspath(library)
    if ADDRESS.match(name) or any(ord(letter) < 32 for letter in name):
        raise InputError(f"{name!r}: a library is a folder on this machine; give its path, such as ./library")


def open_table(library: str | os.PathLike[str], fingerprint: str | None = None) -> Table:
    """The table of ``library``, which ``fingerprint``'s model made. Raises InputError where there is none or it is another's."""
    check_location(library)
    lancedb = _import("lancedb")
    if not has_table(library):
        raise InputError(f"{library}: no photo library here; make one with: triptych index DIR --library {library}")
    try:
        table: Table = lancedb.connect(library).open_table(NAME)
        metadata = table_description(table)
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{library}: this photo library is damaged ({error}); delete it and index anew") from None
    if metadata.get("format") not in (LIBRARY_FORMAT, OLD_FORMAT):
        raise InputError(f"{library}: is of another version of triptych; index the photos into a new library")
    if fingerprint is not None:
        check_model(library, metadata["fingerprint"], fingerprint)
    return table


def check_model(library: str | os.PathLike[str], made_by: str, fingerprint: str) -> None:
    if made_by != fingerprint:
        raise InputError(f"{library}: was made with another model; use that one, or index into a new library")


def create_table(library: str | os.PathLike[str], fingerprint: str, shape: Shape) -> Table:
    """An empty table for features of this shape."""
    lancedb, pa = _import("lancedb"), _import("pyarrow")
    queries, width, pooled = shape
    columns = {
        "path": pa.binary(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "sha256": pa.string(),
        "features": pa.list_(pa.float16(), queries * width),
    }
    if pooled:
        columns["pooled"] = pa.list_(pa.float16(), pooled)
    metadata = {"format": LIBRARY_FORMAT, "fingerprint": fingerprint, "queries": str(queries)}
    table: Table = lancedb.connect(library).create_table(NAME, schema=pa.schema(columns, metadata))
    return table


def has_table(library: str | os.PathLike[str]) -> bool:
    return (Path(library) / f"{NAME}.lance" / "_versions").is_dir()


def table_stamp(library: str | os.PathLike[str]) -> Hashable:
    """Differs once the table has changed; None = there is no table."""
    versions = Path(library) / f"{NAME}.lance" / "_versions"
    try:
        state = versions.stat()
        return state.st_ino, state.st_mtime_ns, frozenset(file.name for file in versions.iterdir())
    except OSError:
        return None


def table_description(table: Table) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def read_rows(table: Table) -> dict[str, PhotoRow]:
    """All photos by path, without their features."""
    columns = table.search().select(["path", "size", "mtime_ns", "sha256"]).to_arrow().to_pydict()
    paths = map(os.fsdecode, columns["path"])
    stamps = map(Stamp, columns["size"], columns["mtime_ns"])
    return {row.path: row for row in map(PhotoRow, paths, stamps, columns["sha256"])}


def read_features(
    table: Table, columns: Sequence[str], where: str | None = None
) -> tuple[list[list[Any]], SearchFeatures]:
    """The ``columns`` of all N photos, or of those ``where``; and their features."""
    kept = [name for name in ("features", "pooled") if name in table.schema.names]
    query = table.search().select([*columns, *kept])
    rows = (query if where is None else query.where(where)).to_arrow()
    sizes = {name: table.schema.field(name).type.list_size for name in kept}
    flat = {name: rows[name].combine_chunks().flatten().to_numpy().reshape(-1, size) for name, size in sizes.items()}
    queries = int(table_description(table)["queries"])
    contrast = flat["features"].reshape(len(rows), queries, sizes["features"] // queries)
    pooled = flat.get("pooled", np.zeros((len(rows), 0), np.float16))
    return [rows[name].to_pylist() for name in columns], SearchFeatures(contrast, pooled)


def features_by_hash(table: Table, hashes: Iterable[str]) -> dict[str, SearchFeatures]:
    """The features of those photos that the table already holds, by the sha256 of their files."""
    listed = ", ".join(f"'{digest}'" for digest in hashes)
    if not listed:
        return {}
    (digests,), features = read_features(table, ["sha256"], f"sha256 IN ({listed})")
    return dict(zip(digests, map(SearchFeatures, *features), strict=True))


def write_rows(table: Table, rows: Sequence[PhotoRow], features: Mapping[str, SearchFeatures]) -> None:
    """Add the rows, or replace those of the same path, in one commit; ``features`` are found by sha256."""
    pa = _import("pyarrow")
    if not rows:
        return
    schema = table.schema
    known = [features[row.sha256] for row in rows]
    kept = {"features": [each.contrast for each in known]}
    if "pooled" in schema.names:
        kept["pooled"] = [each.pooled for each in known]
    columns = [
        pa.array([os.fsencode(row.path) for row in rows], pa.binary()),
        pa.array([row.stamp.size for row in rows], pa.int64()),
        pa.array([row.stamp.mtime_ns for row in rows], pa.int64()),
        pa.array([row.sha256 for row in rows], pa.string()),
        *(
            pa.FixedSizeListArray.from_arrays(pa.array(np.stack(values).reshape(-1)), type=schema.field(name).type)
            for name, values in kept.items()
        ),
    ]
    merge = table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
    merge.execute(pa.Table.from_arrays(columns, schema=schema))


def delete_rows(table: Table, paths: Sequence[str]) -> None:
    for first in range(0, len(paths), DELETED_TOGETHER):
        listed = ", ".join(f"X'{os.fsencode(path).hex()}'" for path in paths[first : first + DELETED_TOGETHER])
        table.delete(f"path IN ({listed})")


def tidy(table: Table) -> None:
    """Join the pieces that many small writes leave, and drop what nobody can still be reading."""
    table.optimize(cleanup_older_than=OLD_VERSIONS_KEPT)


def _import(name: str) -> Any:
    from importlib import import_module

    with importing("library", "a photo library"):
        return import_module(name)
