"""Commands about models: demo, info, and reading and writing checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.application import app
from triptych.cli.common import DeviceOption, Json, PrecisionOption, emit, make_folder
from triptych.cli.tables import record_text
from triptych.errors import InputError
from triptych.extras import importing


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")] = Path("triptych-demo"),
) -> None:
    """Caption the bundled photos and write a report. It shows where the models looked."""
    from triptych.demo import run

    make_folder(out)
    print(f"report: {run(out)}")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")] = "sat",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how much memory torch needs for it, without loading it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe a model: parts, parameters, memory, licences, figures."""
    from triptych.checkpoints.parts import list_parts
    from triptych.tasks import load

    if estimate:
        emit_estimate(model, device, as_json)
        return
    record = load(model, device=device, precision=precision).info()
    record["parts"] = {
        part.name: {"use": part.use, "licence": part.licence, "state": state} for part, state in list_parts()
    }
    emit(record, as_json, record_text(record))


def emit_estimate(model: str, device: str | None, as_json: bool) -> None:
    from triptych.convert.opening import find_folder

    with importing("torch", "an estimate"):
        import torch

        from triptych.models.memory import estimate
    from triptych.tasks import check_device, is_map

    if device is None or is_map(device):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    record = estimate(find_folder(model), torch.device(device))
    emit({"model": model, **record}, as_json, record_text(record))


@app.command()
def cache(
    delete: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Delete the entry of this name, or all of a kind (such as converted); repeat for more."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is kept on disk to save time, with its size. All of it is made or fetched again when it is needed."""
    from triptych.checkpoints.cache import bytes_of, delete_cached, list_cache
    from triptych.checkpoints.parts import home

    if delete:
        deleted = delete_cached(delete)
        emit({"deleted": deleted}, as_json, "\n".join(f"deleted {name}" for name in deleted) or "nothing to delete")
        return
    sizes = {name: bytes_of(path) for name, path in list_cache().items()}
    table = {name: {"MB": round(size / 1e6, 1)} for name, size in sizes.items()}
    lines = record_text({"folder": str(home()), "total MB": round(sum(sizes.values()) / 1e6, 1), "entries": table})
    emit({"folder": str(home()), "bytes": sizes}, as_json, lines)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A published checkpoint, a model on the hub, or one of ours, by folder or name.")
    ],
    target: Annotated[Path, typer.Argument(help="The checkpoint directory to write.")],
    word_map: Annotated[
        Path | None, typer.Option(help="WORDMAP_*.json of a Show, Attend and Tell tutorial checkpoint.")
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="The image encoder that a checkpoint leaves out: LAVIS's eva_vit_g.pth; for OpenFlamingo OpenAI's CLIP, as "
            "open_clip or transformers saves it, or on the hub.",
        ),
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The language model of a LAVIS or OpenFlamingo checkpoint, as transformers saves it, or on the hub.",
        ),
    ] = None,
    embed_lm: Annotated[
        bool, typer.Option("--embed-lm", help="For one of ours: include the language model that it names.")
    ] = False,
    half: Annotated[bool, typer.Option(help="Store 16-bit floats.")] = False,
    int8: Annotated[bool, typer.Option(help="Store 8-bit integers.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint. One of our own is written anew; TARGET becomes a checkpoint directory."""
    with importing("torch", "conversion"):
        from triptych.convert.checkpoint import convert_checkpoint

    report = convert_checkpoint(source, target, word_map, half, int8, vision, lm, embed_lm)
    counts = {"mapped": list(report.mapped), "missing": list(report.missing), "ignored": list(report.ignored)}
    emit(
        {"target": str(target), **counts},
        as_json,
        f"{target}: " + ", ".join(f"{len(v)} {k}" for k, v in counts.items()),
    )


@app.command()
def average(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Two or more of one architecture, each as --model of the other commands."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint directory to write.")],
) -> None:
    """Average the weights of several checkpoints. The mean is often better than each."""
    with importing("torch", "a mean of weights"):
        from triptych.models.average import average_checkpoints
    from triptych.convert.opening import find_checkpoint

    average_checkpoints([find_checkpoint(model) for model in models], out)
    print(out)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")],
    target: Annotated[Path, typer.Argument(help="The folder or file to write.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: a folder that transformers opens; lavis, openflamingo: a file of theirs; onnx: graphs that plain onnxruntime runs.",
        ),
    ] = "hf",
    precision: Annotated[
        str | None, typer.Option(help="With --format onnx: fp32, int8 or int4.", show_default="fp32")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as a folder or a file of another project."""
    from triptych.convert.opening import find_checkpoint

    if precision is not None and form != "onnx":
        raise InputError("--precision is for --format onnx: add that, or leave this out")
    if form == "onnx":
        from triptych.engines.choice import chosen_precision
        from triptych.engines.onnx.export import export_onnx

        count, what = export_onnx(find_checkpoint(model), target, chosen_precision(precision or "fp32")), "graphs"
    else:
        with importing("torch", "export"):
            from triptych.convert.export import export_checkpoint
        count, what = export_checkpoint(find_checkpoint(model), target, form), "tensors"
    emit({"target": str(target), "format": form, what: count}, as_json, f"{target}: {count} {what}")


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="As --model of the other commands.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What it is called on the Hugging Face hub.")],
    form: Annotated[
        str, typer.Option("--format", help="triptych, or hf: a folder that transformers opens.")
    ] = "triptych",
    base: Annotated[
        list[str] | None, typer.Option("--base-model", help="A model on the hub that it was made of.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a model card."""
    from triptych.convert.opening import find_checkpoint

    with importing("torch", "push"):
        from triptych.convert.push import push as push_checkpoint

    address = push_checkpoint(find_checkpoint(model), name, form, private, base or ())
    emit({"model": model, "address": address}, as_json, address)
