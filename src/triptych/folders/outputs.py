"""The results of a run as one file: JSON lines, CSV, Parquet or an HTML page, streamed from the journal."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from triptych.errors import InputError
from triptych.folders.page import described_page
from triptych.io.files import replacement

OUTPUTS = (".jsonl", ".csv", ".parquet", ".html", ".htm")
ROWS = 1024  # written together to Parquet
COLUMNS = ("image", "caption", "answer", "tags", "logprob", "model", "question", "seconds", "error")


def journal_path(out: Path) -> Path:
    """The journal of ``out``: the file itself for JSON lines, else a file beside it.

    Raises InputError: the suffix is not one of ``OUTPUTS``.
    """
    suffix = out.suffix.lower()
    if suffix not in OUTPUTS:
        raise InputError(f"--out {out}: name a file that ends with {', '.join(OUTPUTS[:-2])} or .html")
    return out if suffix == ".jsonl" else out.with_name(f"{out.name}.jsonl")


def write_output(out: Path, records: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Write all records to ``out`` atomically, in the format of its suffix. ``records``: a function that iterates over all of them.

    Raises:
        InputError: Parquet without pyarrow installed.
        TriptychError: the disk is full or not writable.
    """
    suffix = out.suffix.lower()
    if suffix == ".jsonl":
        return  # the journal is the output
    with replacement(out) as beside:
        if suffix == ".csv":
            write_csv(beside, records())
        elif suffix == ".parquet":
            write_parquet(beside, records())
        else:
            write_html(beside, records)


def write_csv(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**record, "tags": ", ".join(record.get("tags", ()))} for record in records)


def write_parquet(path: Path, records: Iterable[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise InputError("Parquet needs pyarrow: pip install 'triptych[library]'") from None
    kinds = {"logprob": pa.float64(), "seconds": pa.float64(), "tags": pa.list_(pa.string())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    rows = iter(records)
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(islice(rows, ROWS)):
            columns = {name: [table_cell(row.get(name)) for row in part] for name in COLUMNS}
            writer.write_table(pa.table(columns, schema=schema))


def table_cell(value: Any) -> Any:
    """A cell of a table: text that is valid Unicode, a list of keywords, or a number."""
    if isinstance(value, dict):
        return list(value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def write_html(path: Path, records: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """A page of the photos with their texts, those to review marked."""
    with path.open("w", encoding="utf-8", errors="xmlcharrefreplace") as file:
        file.writelines(described_page(path, records))
