"""``python -m benchmarks sat``: measures Show, Attend and Tell and prints a table; ``lm``: the language model; ``blip2``: BLIP-2;
``flamingo``: Flamingo; ``engine``: ONNX Runtime beside torch and transformers; ``serve``: the server under load.

See README.md for what each row means.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.process import ROOT, processor, run_python

SHIPPED = ROOT / "src" / "triptych" / "weights" / "sat"
PHOTO = ROOT / "src" / "triptych" / "examples" / "dog.jpg"
BEAM, CAPTION = ["-m", "benchmarks.sat_beam"], ["-m", "benchmarks.sat_caption"]
DECODE = ["-m", "benchmarks.lm_decode"]
PEERS = ("transformers", "torch", "onnx")


class Row(NamedTuple):
    name: str
    value: float
    unit: str


def figures(module: str, *arguments: str, threads: int, repeats: int) -> dict[str, float]:
    """What ``python -m benchmarks.MODULE`` prints."""
    run = run_python(["-m", f"benchmarks.{module}", *arguments, "--repeats", str(repeats)], threads)
    printed: dict[str, float] = json.loads(run.stdout)
    return printed


def cold_rows(name: str, command: list[str], threads: int, repeats: int) -> list[Row]:
    """A whole command, each time in a fresh process, after one that brings the files into the disk cache."""
    runs = [run_python(command, threads) for _ in range(repeats + 1)][1:]
    return [
        Row(f"cold, {name}", 1000 * median(run.seconds for run in runs), "ms"),
        Row(f"cold, {name}, peak memory", max(run.peak_mb for run in runs), "MB"),
    ]


def beam_rows(threads: int, repeats: int) -> list[Row]:
    """32 photos, beam 5: photos per second, the ratio, and the peak memory of a process that does one of the two."""
    times = json.loads(run_python([*BEAM, "both", "--repeats", str(repeats)], threads).stdout)
    rates = {name: times["photos"] / times[f"{name}_seconds"] for name in ("ours", "plain")}
    return [
        Row("beam 5, batched (ours)", rates["ours"], "photos/s"),
        Row("beam 5, one photo at a time (plain)", rates["plain"], "photos/s"),
        Row("beam 5, ours / plain", rates["ours"] / rates["plain"], "times"),
        Row("beam 5, words in a caption", times["words"], "words"),
        *(
            Row(f"beam 5, peak memory ({name})", run_python([*BEAM, name], threads).peak_mb, "MB")
            for name in ("ours", "plain", "idle")
        ),
    ]


def warm_rows(model: str, threads: int, repeats: int) -> list[Row]:
    """One photo in a process that has the model loaded."""
    run = run_python([*CAPTION, "run", model, str(PHOTO), "--repeats", str(repeats)], threads)
    times = json.loads(run.stdout)
    words = times.pop("words")
    return [
        *(Row(f"warm caption, {name}", 1000 * seconds, "ms") for name, seconds in times.items()),
        Row("warm caption, words in a caption", words, "words"),
        Row("warm caption, peak memory", run.peak_mb, "MB"),
    ]


def start_rows(model: str, threads: int, repeats: int) -> list[Row]:
    """A caption by the command line, and what starting costs of it."""
    commands = {
        "triptych caption": ["-m", "triptych", "caption", str(PHOTO), "--model", model],
        "import triptych.tasks": ["-c", "import triptych.tasks"],
        "import torch": ["-c", "import torch"],
        "triptych --help": ["-m", "triptych", "--help"],
        "python": ["-c", "pass"],
    }
    return [row for name, command in commands.items() for row in cold_rows(name, command, threads, repeats)]


def lm_rows(threads: int, repeats: int) -> list[Row]:
    """One text and eight at once: ours and transformers' in turns, in one process; then the peak memory of ours."""
    rows = []
    for texts, name in ((1, "1 text"), (8, "8 texts")):
        run = run_python([*DECODE, "both", "--texts", str(texts), "--repeats", str(repeats)], threads)
        times = json.loads(run.stdout)
        for key, whose in (("ours", "ours"), ("theirs", "transformers")):
            rows.append(Row(f"{name}, {whose}", times["tokens"] / times[f"{key}_all"], "tokens/s"))
        for what, label in (("all", name), ("prompt", f"{name}, prompt")):
            for clock, suffix in (("", ""), ("_cpu", ", CPU time")):
                ratio = times[f"theirs_{what}{clock}"] / times[f"ours_{what}{clock}"]
                rows.append(Row(f"{label}, ours / transformers{suffix}", ratio, "times"))
    for which, texts in (("idle", 1), ("ours", 1), ("ours", 8)):
        run = run_python([*DECODE, which, "--texts", str(texts)], threads)
        rows.append(Row(f"peak memory ({which}, {texts})", run.peak_mb, "MB"))
    return rows


def blip2_rows(threads: int, repeats: int) -> list[Row]:
    """A question warm and cold, search with re-ranking, indexing, and the matching grid beside transformers'."""
    measured = partial(figures, "blip2_use", threads=threads, repeats=repeats)
    rows = [Row(f"ask, {name}", 1000 * seconds, "ms") for name, seconds in measured("ask").items()]
    command = ["-m", "triptych", "ask", str(PHOTO), "--question", "What animal is in the photo?"]
    rows += cold_rows("triptych ask", command, threads, repeats)
    rows += [Row(name, 1000 * seconds, "ms") for name, seconds in measured("search").items()]
    indexed = measured("index")
    rows.append(Row("index", indexed["photos"] / indexed["seconds"], "photos/s"))
    grid = measured("grid")
    ours, theirs, _ = grid.values()
    rows += [Row(f"grid {name}", seconds, "s") for name, seconds in grid.items()]
    return [*rows, Row("grid, ours / transformers", theirs / ours, "times")]


def flamingo_rows(threads: int, repeats: int, quick: bool) -> list[Row]:
    """Decoding behind 0 to 32 shots beside OpenFlamingo's way, a second question, and a training step beside the language model's."""
    measured = partial(figures, "flamingo", threads=threads, repeats=repeats)
    rows = []
    for size in ("tiny",) if quick else ("wide", "shipped"):
        decoded = measured("decode", size)
        shots = [name.removeprefix("ours_") for name in decoded if name.startswith("ours_")]
        for n in shots:
            ours, reference = decoded[f"ours_{n}"], decoded[f"reference_{n}"]
            rows.append(Row(f"{size}, {n} shots, ours", 1 / ours, "tokens/s"))
            rows.append(Row(f"{size}, {n} shots, projected again", 1 / reference, "tokens/s"))
            rows.append(Row(f"{size}, {n} shots, ours / projected again", reference / ours, "times"))
        first, last = shots[0], shots[-1]
        ratio = decoded[f"ours_{last}"] / decoded[f"ours_{first}"]
        rows.append(Row(f"{size}, time per token, {last} / {first} shots", ratio, "times"))
        times = measured("question", size)
        rows.append(Row(f"{size}, second question, ours", 1000 * times["ours"], "ms"))
        rows.append(Row(f"{size}, second question, read anew", 1000 * times["anew"], "ms"))
        rows.append(Row(f"{size}, second question, ours / read anew", times["anew"] / times["ours"], "times"))
        rows.append(Row(f"{size}, resampler, {times['pictures']} pictures", 1000 * times["resampler"], "ms"))
    step = measured("train", "tiny" if quick else "shipped")
    name = f"training step, {'bf16' if step['bf16'] else 'fp32'}"
    rows.append(Row(f"{name}, ours", step["sequences"] / step["ours"], "sequences/s"))
    rows.append(Row(f"{name}, language model alone", step["sequences"] / step["floor"], "sequences/s"))
    return [*rows, Row(f"{name}, time, ours / language model", step["ours"] / step["floor"], "times")]


def engine_rows(threads: int, repeats: int) -> list[Row]:
    """The engine for CPUs beside transformers and our decoder on torch, in turns; photos to captions; whole commands in new processes."""
    measured = partial(figures, "engine", threads=threads, repeats=repeats)
    rows = []
    for name, arguments in (
        ("1 text", ["decode"]),
        ("8 texts", ["decode", "--rows", "8"]),
        ("beam 5", ["decode", "--beams", "5"]),
    ):
        times = measured(*arguments)
        rows += [Row(f"{name}, {whose}", times["tokens"] / times[whose], "tokens/s") for whose in PEERS]
        rows += ratios(name, times, PEERS[:-1])
        if name == "1 text":
            share = times["bytes"] * times["tokens"] / times["onnx"] / times["bandwidth"]
            rows.append(Row("1 text, share of the memory's bandwidth", 100 * share, "%"))
    times = measured("prompt")
    rows += [Row(f"prompt of 32, {whose}", 1000 * times[whose], "ms") for whose in PEERS]
    rows += ratios("prompt of 32", times, PEERS[:-1])
    for photos in (1, 16):
        times, name = measured("encode", "--rows", str(photos)), f"encoder, {photos} photo{'s' * (photos > 1)}"
        rows += [Row(f"{name}, {whose}", photos / times[whose], "photos/s") for whose in PEERS[1:]]
        rows += ratios(name, times, PEERS[1:-1])
    times = measured("shots", "--rows", "8")
    rows += [Row(f"8 shots, {whose}", times["tokens"] / times[whose], "tokens/s") for whose in ("reference", "onnx")]
    rows += ratios("8 shots", times, ["reference"])
    rows += [Row(f"second question, {whose}", 1000 * times[whose], "ms") for whose in ("anew", "second")]
    rows.append(Row("second question, second / anew", times["anew"] / times["second"], "times"))
    for model in ("sat", "blip2", "flamingo"):
        for photos in (1, 8):
            times = measured("caption", "--model", model, "--rows", str(photos))
            name = f"{model}, {photos} photo{'s' * (photos > 1)}"
            peers = [whose for whose in PEERS if whose in times]
            rows += [Row(f"{name}, {whose}", photos / times[whose], "photos/s") for whose in peers]
            rows += ratios(name, times, peers[:-1])
    return [*rows, *cold_engine_rows(threads, repeats)]


def ratios(name: str, times: dict[str, float], peers: Sequence[str]) -> list[Row]:
    """How many times faster than each of its peers ONNX Runtime is, by the clock and by the processor's time."""
    return [
        Row(f"{name}, onnx / {whose}{suffix}", times[f"{whose}{clock}"] / times[f"onnx{clock}"], "times")
        for whose in peers
        for clock, suffix in (("", ""), ("_cpu", ", CPU time"))
    ]


def cold_engine_rows(threads: int, repeats: int) -> list[Row]:
    """Commands from start to end, and the same on torch."""
    question = "What animal is in the photo?"
    commands = {
        "triptych caption": ["-m", "triptych", "caption", str(PHOTO)],
        "triptych ask": ["-m", "triptych", "ask", str(PHOTO), "--question", question],
    }
    on_torch = {
        "triptych caption": f"import triptych; triptych.load('sat', device='cpu').caption({str(PHOTO)!r})",
        "triptych ask": f"import triptych; triptych.load('blip2', device='cpu').ask({str(PHOTO)!r}, {question!r})",
    }
    rows = []
    for name, arguments in commands.items():
        rows += cold_rows(f"{name}, onnx", arguments, threads, repeats)
        rows += cold_rows(f"{name}, torch", ["-c", on_torch[name]], threads, repeats)
    return rows


def serve_rows(threads: int, repeats: int, quick: bool, part: str | None) -> list[Row]:
    """The server under load; ``quick``: a sixteenth of the load; ``part``: only this one of ``serve.PARTS``."""
    load = ["--requests", "8", "--connections", "64"] if quick else []
    load += ["--part", part] if part else []
    run = run_python(["-m", "benchmarks.serve", *load, "--repeats", str(repeats)], threads)
    return [Row(name, value, serve_unit(name)) for name, value in json.loads(run.stdout).items()]


def serve_unit(name: str) -> str:
    """Of a figure of ``benchmarks.serve``."""
    if " / " in name:
        return "times"
    if name.endswith("clients") and "p99" not in name:
        return "requests/s"
    units = {"memory": "MB", "memory, growth": "%"} | dict.fromkeys(
        ("connections", "answered", "refused", "lost"), "requests"
    )
    return units.get(name, "ms")


def sat_rows(threads: int, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model = "sat"
        if not SHIPPED.is_dir():
            model = str(Path(folder) / "sample")
            run_python([*CAPTION, "sample", model], threads)
        return (
            beam_rows(threads, repeats) + warm_rows(model, threads, 4 * repeats) + start_rows(model, threads, repeats)
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("system", choices=("sat", "lm", "blip2", "flamingo", "engine", "serve"))
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of searches, decoding and commands; warm captions: 4 times that"
    )
    parser.add_argument(
        "--quick", action="store_true", help="flamingo at tiny sizes, serve with a sixteenth of the load"
    )
    parser.add_argument("--part", help="serve: only sat, blip2, second (questions on the same pictures) or crowd")
    arguments = parser.parse_args()
    systems: dict[str, Callable[[int, int], list[Row]]] = {
        "sat": sat_rows,
        "lm": lm_rows,
        "blip2": blip2_rows,
        "flamingo": partial(flamingo_rows, quick=arguments.quick),
        "engine": engine_rows,
        "serve": partial(serve_rows, quick=arguments.quick, part=arguments.part),
    }
    if arguments.system in ("engine", "serve"):
        about = processor()
        print(json.dumps(about) if arguments.json else f"{about['name']}, {about['cores']} cores: {about['flags']}")
    for row in systems[arguments.system](arguments.threads, arguments.repeats):
        digits = 2 if row.unit in ("times", "sequences/s") else 1
        print(json.dumps(row._asdict()) if arguments.json else f"{row.name:<48}{row.value:>10.{digits}f} {row.unit}")


if __name__ == "__main__":
    main()
