"""The loop that every recipe shares: optimiser, schedule, precision, validation, early stopping, exact resume.

Whatever decides a step (data order, dropout, learning rate) is a function of the seed and the step alone, so a run that is killed
and started again goes on with the same losses. It runs through ``accelerate``: the same command serves one process or many.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from triptych.errors import InputError, TriptychError

Batch = tuple[Any, ...]


@dataclass(frozen=True)
class LoopConfig:
    """``batch_size`` counts items of one optimiser step over all processes; ``warmup`` is the share of steps in which the rate climbs.

    After the warm-up the learning rate falls to zero along a cosine. ``patience``: validations without a better one before the end.
    """

    epochs: int = 15
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    patience: int = 4
    precision: str = "auto"  # auto, fp32 or bf16
    seed: int = 0
    save_minutes: float = 3.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "learning_rate", "clip", "patience"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"unknown precision {self.precision!r}: choose auto, fp32 or bf16")
        if self.batch_size % self.accumulation:
            raise InputError(f"a batch of {self.batch_size} cannot be split into {self.accumulation} equal parts")


def has_fast_bf16() -> bool:
    """bfloat16 is worth it on GPUs and on processors with instructions for it; elsewhere it is several times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_bf16(config: LoopConfig) -> bool:
    """Whether this run computes in bfloat16 (autocast)."""
    return config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16())


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear climb, then half a cosine down to 0 at ``steps``."""
    climb = max(1, round(steps * warmup))
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))


def batch_rows(step: int, items: int, config: LoopConfig) -> list[int]:
    """The items of one step: each epoch is its own shuffle; the last, incomplete batch of an epoch is left out."""
    per_epoch = max(1, items // config.batch_size)
    epoch, index = divmod(step, per_epoch)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
    return order[index * config.batch_size : (index + 1) * config.batch_size].tolist()


def fit(
    run: Path,
    objective: nn.Module,
    parameter_groups: Sequence[dict[str, Any]],
    items: int,
    batch: Callable[[Sequence[int], int], Batch],
    validate: Callable[[], dict[str, float]],
    save_best: Callable[[dict[str, Any]], None],
    config: LoopConfig,
    identity: Mapping[str, Any],
    metric: str = "CIDEr-D",
) -> dict[str, Any]:
    """Train ``objective`` (``forward(*batch) -> loss``) and keep the best state by ``metric``; resumes what it finds in ``run``.

    Args:
        run: the run's folder; gets ``state.pt`` (resume), ``log.jsonl`` and TensorBoard's events.
        parameter_groups: as AdamW takes them; an ``lr_scale`` multiplies the learning rate of its group.
        items: how many training items there are; an epoch sees each at most once (whole batches only).
        batch: (rows of the training items, a seed) -> the tensors that ``objective`` takes.
        validate: metrics of the present state, after each epoch, on the main process.
        save_best: called with the record of a validation that beats all before.
        identity: what the run is (recipe, model, data), as plain values; a run begun as another is not resumed.

    Raises:
        InputError: ``run`` holds another run, or there are too few items.
        TriptychError: the loss is not finite, or the disk is full.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    bf16 = uses_bf16(config)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a stage need not train every head
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[unused])
    optimizer = torch.optim.AdamW(
        parameter_groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    per_epoch = max(1, items // config.batch_size)
    if min(items, config.batch_size) < config.accumulation * accelerator.num_processes:
        raise InputError(
            f"{items} photos in batches of {config.batch_size} are too few for {accelerator.num_processes} "
            f"processes with {config.accumulation} parts each"
        )
    steps = per_epoch * config.epochs
    progress: dict[str, Any] = {"step": 0, "best": -math.inf, "since_best": 0}
    best_record: dict[str, Any] = {}
    state_file = run / "state.pt"
    plain = json.loads(json.dumps({"loop": asdict(config), **identity}))
    if state_file.exists():
        state = torch.load(state_file, map_location=accelerator.device, weights_only=True)
        if state["identity"] != plain:
            raise InputError(f"{run} was begun with other settings: go on with those, or name another --run")
        objective.load_state_dict(state["objective"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        progress, best_record = state["progress"], state["best_record"]

    def save_state() -> None:
        trained = {k: v for k, v in objective.state_dict().items() if k in kept}
        state = {"identity": plain, "objective": trained, "optimizer": optimizer.state_dict()}
        write_atomically(state_file, state | {"progress": progress, "best_record": best_record})

    frozen = {k for k, p in objective.named_parameters() if not p.requires_grad}
    kept = set(objective.state_dict()) - frozen
    main = accelerator.is_main_process
    log = Log(run, progress["step"]) if main else None
    saved = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not main,
    )
    with bar:
        task = bar.add_task("training", total=steps, completed=progress["step"])
        while progress["step"] < steps and progress["since_best"] < config.patience:
            step = progress["step"]
            factor = learning_rate_factor(step, steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * group.get("lr_scale", 1.0) * factor
            rows = batch_rows(step, items, config)[accelerator.process_index :: accelerator.num_processes]
            wrapped.train()
            loss = train_step(accelerator, wrapped, optimizer, rows, batch, step, config)
            if not math.isfinite(loss):
                raise TriptychError(f"the loss became {loss} at step {step}: try a lower --learning-rate")
            progress["step"] = step + 1
            bar.update(task, advance=1, description=f"loss {loss:.3f}")
            if log:
                terms = getattr(objective, "last", {})
                log.write({"step": step + 1, "loss": loss, "learning_rate": config.learning_rate * factor} | terms)
            if (step + 1) % per_epoch == 0:
                metrics: dict[str, float] = {}
                if main:
                    objective.eval()
                    metrics = validate()
                value = share(accelerator, metrics.get(metric, 0.0))
                better = value > progress["best"]
                progress["best"], progress["since_best"] = (
                    (value, 0) if better else (progress["best"], progress["since_best"] + 1)
                )
                if log:
                    record = {"epoch": (step + 1) // per_epoch, "step": step + 1} | metrics
                    log.write(record)
                    shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items())
                    bar.console.print(
                        f"epoch {record['epoch']}: loss {loss:.3f}  {shown}{'  (best)' if better else ''}",
                        soft_wrap=True,
                    )
                    if better:
                        best_record = record
                        save_best(record)
            if main and (time.monotonic() - saved > 60 * config.save_minutes or (step + 1) % per_epoch == 0):
                save_state()
                saved = time.monotonic()
    accelerator.wait_for_everyone()
    return best_record


def train_step(
    accelerator: Any,
    wrapped: nn.Module,
    optimizer: Any,
    rows: Sequence[int],
    batch: Callable[[Sequence[int], int], Batch],
    step: int,
    config: LoopConfig,
) -> float:
    """Forward and backward over the parts of one batch, clip, update. Returns the mean loss of this process."""
    from accelerate.utils import send_to_device

    total = 0.0
    for part in range(config.accumulation):
        seed = (
            (config.seed * 1_000_003 + step) * config.accumulation + part
        ) * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(seed)  # dropout
        tensors = send_to_device(batch(rows[part :: config.accumulation], seed), accelerator.device)
        last = part + 1 == config.accumulation
        with nullcontext() if last else accelerator.no_sync(wrapped), accelerator.autocast():
            loss = wrapped(*tensors) / config.accumulation
        accelerator.backward(loss)
        total += loss.item()
    accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()
    return total


def share(accelerator: Any, value: float) -> float:
    """The main process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor([value if accelerator.is_main_process else 0.0], device=accelerator.device)
    return float(accelerator.reduce(tensor, reduction="sum").item())


def write_atomically(path: Path, state: dict[str, Any]) -> None:
    beside = path.with_suffix(".tmp")
    try:
        torch.save(state, beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        raise TriptychError(
            f"{path}: cannot save the training state ({error}); free some space and start the same command again"
        ) from error


class Log:
    """Every step and validation, as JSON lines and for TensorBoard. A resumed run writes the steps after its last save anew."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.lines = run / "log.jsonl"
        if self.lines.exists():
            whole = [line for line in self.lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
            beside = self.lines.with_suffix(".tmp")
            beside.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
            beside.replace(self.lines)
        self.events = SummaryWriter(str(run), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("step", "epoch") and isinstance(value, float):
                self.events.add_scalar(name, value, record["step"])
