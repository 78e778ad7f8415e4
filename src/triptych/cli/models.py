"""The demo, what a model consists of, and checkpoints of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.common import Json, PrecisionOption, app, emit, make_folder
from triptych.cli.tables import record_text
from triptych.errors import InputError
from triptych.extras import importing


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")] = Path("triptych-demo"),
) -> None:
    """Caption the bundled photos and write a report that shows where the model looked."""
    from triptych.demo import run

    make_folder(out)
    print(f"report: {run(out)}")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")] = "sat",
    precision: PrecisionOption = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how much memory torch needs for it, without loading it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe a model: its parts, parameters, memory, licences and figures."""
    from triptych.checkpoints.parts import list_parts
    from triptych.tasks import load

    if estimate:
        emit_estimate(model, as_json)
        return
    record = load(model, precision=precision).info()
    record["parts"] = {
        part.name: {"use": part.use, "licence": part.licence, "state": state} for part, state in list_parts()
    }
    emit(record, as_json, record_text(record))


def emit_estimate(model: str, as_json: bool) -> None:
    from triptych.convert.opening import find_checkpoint

    with importing("torch", "an estimate"):
        import torch

        from triptych.models.memory import estimate

    record = estimate(find_checkpoint(model), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    emit({"model": model, **record}, as_json, record_text(record))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint, or one of ours.")],
    target: Annotated[Path, typer.Argument(help="The checkpoint directory to write.")],
    word_map: Annotated[
        Path | None, typer.Option(help="WORDMAP_*.json of a Show, Attend and Tell tutorial checkpoint.")
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="The image encoder that a checkpoint leaves out: LAVIS's eva_vit_g.pth; for OpenFlamingo OpenAI's CLIP, as "
            "open_clip or transformers saves it.",
        ),
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The language model of a LAVIS or OpenFlamingo checkpoint, as transformers saves it."
        ),
    ] = None,
    half: Annotated[bool, typer.Option(help="Store 16-bit floats.")] = False,
    int8: Annotated[bool, typer.Option(help="Store 8-bit integers.")] = False,
    as_json: Json = False,
) -> None:
    """Read a checkpoint of another project (or of ours) and write it as a checkpoint directory."""
    with importing("torch", "conversion"):
        from triptych.convert.checkpoint import convert_checkpoint

    report = convert_checkpoint(source, target, word_map, half, int8, vision, lm)
    counts = {"mapped": list(report.mapped), "missing": list(report.missing), "ignored": list(report.ignored)}
    emit(
        {"target": str(target), **counts},
        as_json,
        f"{target}: " + ", ".join(f"{len(v)} {k}" for k, v in counts.items()),
    )


@app.command()
def average(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two checkpoint directories or more, of one architecture.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint directory to write.")],
) -> None:
    """Write the mean of the weights of several checkpoints, which is often better than each."""
    with importing("torch", "a mean of weights"):
        from triptych.models.average import average_checkpoints

    average_checkpoints(checkpoints, out)
    print(out)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")],
    target: Annotated[Path, typer.Argument(help="The directory to write.")],
    form: Annotated[str, typer.Option("--format", help="hf: a folder that transformers opens.")] = "hf",
    as_json: Json = False,
) -> None:
    """Write a BLIP-2 over a vision transformer as a folder of another project."""
    with importing("torch", "export"):
        from triptych.convert.export import export_hf
    from triptych.convert.opening import find_checkpoint

    if form != "hf":
        raise InputError(f"unknown format {form!r}: only hf is written")
    count = export_hf(find_checkpoint(model), target)
    emit({"target": str(target), "format": form, "tensors": count}, as_json, f"{target}: {count} tensors")
