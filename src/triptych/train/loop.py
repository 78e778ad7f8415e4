"""The training loop of all recipes: optimiser, schedule, precision, validation, early stopping, exact resume.

Data order, dropout and learning rate depend on the seed and the step alone, so that a run that is killed and started again continues
with the same losses. It uses ``accelerate``: the same command works with one process or many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from triptych.errors import InputError, TriptychError
from triptych.train.averaging import WeightAverage
from triptych.train.processes import on_cpu
from triptych.train.recipe import LoopSettings, OptimizerSettings
from triptych.train.sampling import batch_rows, steps_per_epoch
from triptych.train.state import Log, TrainingState
from triptych.train.trainer import Trainer


def has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than fp32: on GPUs and processors with instructions for it; elsewhere it is several times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_bf16(loop: LoopSettings) -> bool:
    """Whether this run computes in bfloat16 (autocast)."""
    return loop.precision == "bf16" or (loop.precision == "auto" and has_fast_bf16())


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then half a cosine down to 0 at ``steps``."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def fit(run: Path, trainer: Trainer, loop: LoopSettings) -> dict[str, Any]:
    """Train, and save the best state by the trainer's metric in ``run/best``; resumes the run in ``run`` if there is one.

    Args:
        run: the run's folder, for ``state.pt`` (to resume), ``log.jsonl`` and TensorBoard's events.

    Returns:
        The record of the best validation.

    Raises:
        InputError: ``run`` contains another run, or there are too few items.
        TriptychError: the loss is not finite, or the disk is full.
    """
    run.mkdir(parents=True, exist_ok=True)
    trainer.prepare(run, new=not (run / "state.pt").exists())
    accelerator = make_accelerator(loop)
    wrapped, optimizer = accelerator.prepare(trainer.objective, make_optimizer(trainer, loop.optimizer))
    mix = trainer.mix._replace(epoch_items=loop.epoch_items)
    check_sizes(mix.per_epoch, loop, accelerator.num_processes)
    per_epoch = steps_per_epoch(mix, loop.batch_size)
    steps = per_epoch * loop.epochs
    average = WeightAverage(trainer.objective, loop.optimizer.average)
    state = TrainingState(run, trainer.objective, optimizer, average, {"loop": asdict(loop), **trainer.identity()})
    progress = state.load(accelerator.device)
    step_log = Log(run, progress.step) if accelerator.is_main_process else None
    saved = time.monotonic()
    with progress_bar(accelerator.is_main_process) as bar:
        task = bar.add_task("training", total=steps, completed=progress.step)
        while progress.step < steps and progress.since_best < loop.patience:
            rate = set_learning_rate(optimizer, loop.optimizer, progress.step, steps)
            rows = batch_rows(progress.step, mix, loop.batch_size, loop.seed)
            loss = train_step(accelerator, (wrapped, optimizer), trainer, loop, progress.step, rows)
            average.update(progress.step)
            progress.step += 1
            bar.update(task, advance=1, description=f"loss {loss:.3f}")
            if step_log:
                terms = getattr(trainer.objective, "last", {})
                step_log.write({"step": progress.step, "loss": loss, "learning_rate": rate, **terms})
            epoch, rest = divmod(progress.step, per_epoch)
            if not rest:
                with average.applied():
                    record = {"epoch": epoch, "step": progress.step} | (validate(trainer) if step_log else {})
                    better = progress.judge(share_value(accelerator, record.get(trainer.metric, 0.0)))
                    if step_log:
                        step_log.write(record)
                        bar.console.print(epoch_line(record, loss, better), soft_wrap=True)
                        if better:
                            progress.best_record = record
                            trainer.save(run / "best", record)
            if step_log and (not rest or time.monotonic() - saved > 60 * loop.save_minutes):
                state.save(progress)
                saved = time.monotonic()
    accelerator.wait_for_everyone()
    return progress.best_record


def make_optimizer(trainer: Trainer, settings: OptimizerSettings) -> torch.optim.AdamW:
    groups = trainer.parameter_groups()
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99))


def set_learning_rate(optimizer: Any, settings: OptimizerSettings, step: int, steps: int) -> float:
    """Set the learning rate of each group for this step; returns that of groups without an ``lr_scale``."""
    factor = learning_rate_factor(step, steps, settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * group.get("lr_scale", 1.0) * factor
    return settings.learning_rate * factor


def make_accelerator(loop: LoopSettings) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # some stages do not train every head
    precision = "bf16" if uses_bf16(loop) else "no"
    return Accelerator(cpu=on_cpu(), mixed_precision=precision, kwargs_handlers=[unused])


def check_sizes(items: int, loop: LoopSettings, processes: int) -> None:
    """Raises InputError: too few items for every part of every process."""
    if min(items, loop.batch_size) < loop.accumulation * processes:
        raise InputError(
            f"{items} photos in batches of {loop.batch_size} are too few for {processes} processes with {loop.accumulation} parts each: "
            "raise --batch-size or give more photos"
        )


def progress_bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not visible)


def validate(trainer: Trainer) -> dict[str, float]:
    trainer.objective.eval()
    return trainer.validate()


def epoch_line(record: dict[str, Any], loss: float, better: bool) -> str:
    figures = "  ".join(f"{name} {value:.3f}" for name, value in record.items() if name not in ("epoch", "step"))
    return f"epoch {record['epoch']}: loss {loss:.3f}  {figures}{'  (best)' if better else ''}"


def train_step(
    accelerator: Any,
    model: tuple[nn.Module, Any],
    trainer: Trainer,
    loop: LoopSettings,
    step: int,
    rows: Sequence[int],
) -> float:
    """Forward and backward over the parts of one batch, clip, update. Returns the mean loss of this process.

    ``model``: the wrapped objective and its optimiser. ``rows``: the batch's items for all processes.

    Raises:
        TriptychError: the loss is not finite.
    """
    from accelerate.utils import send_to_device

    wrapped, optimizer = model
    wrapped.train()
    processes, process = accelerator.num_processes, accelerator.process_index
    rows = rows[process::processes]
    total = 0.0
    for part in range(loop.accumulation):
        seed = ((loop.seed * 1_000_003 + step) * loop.accumulation + part) * processes + process
        torch.manual_seed(seed)  # dropout
        tensors = send_to_device(trainer.batch(rows[part :: loop.accumulation], seed), accelerator.device)
        last = part + 1 == loop.accumulation
        with nullcontext() if last else accelerator.no_sync(wrapped), accelerator.autocast():
            loss = wrapped(*tensors) / loop.accumulation
        accelerator.backward(loss)
        total += loss.item()
    if not math.isfinite(total):
        raise TriptychError(f"the loss became {total} at step {step}: try a lower --learning-rate")
    accelerator.clip_grad_norm_(wrapped.parameters(), loop.optimizer.clip)
    optimizer.step()
    optimizer.zero_grad()
    return total


def share_value(accelerator: Any, value: float) -> float:
    """The main process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor([value if accelerator.is_main_process else 0.0], device=accelerator.device)
    return float(accelerator.reduce(tensor, reduction="sum").item())
