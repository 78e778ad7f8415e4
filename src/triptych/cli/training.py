"""``triptych train``: train a system on one's own photos."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.common import Data, Json, app, emit, make_folder
from triptych.errors import InputError, TriptychError

training = typer.Typer(help="Train a system on your own photos.")
app.add_typer(training, name="train")

Run = Annotated[
    Path, typer.Option(metavar="DIR", help="The run's folder; the same command goes on after an interruption.")
]
Encoder = Annotated[str, typer.Option(help="efficientnet-lite2, vgg19 or resnet101.")]
EncoderWeights = Annotated[Path | None, typer.Option(metavar="FILE", help="torchvision's .pth of vgg19 or resnet101.")]
ImageSize = Annotated[int, typer.Option(min=32, help="Photos are brought to this square, in pixels.")]
LanguageModel = Annotated[
    str,
    typer.Option(
        metavar="LM", help="The frozen language model: smollm2-135m, a GGUF file, or a directory of transformers'."
    ),
]
Epochs = Annotated[int, typer.Option(min=1)]
LearningRate = Annotated[float, typer.Option(min=0)]
Patience = Annotated[int, typer.Option(min=1, help="Validations without a better one before stopping.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1)]


@training.command("sat")
def train_sat(
    data: Data,
    run: Run,
    objective: Annotated[
        str, typer.Option(help="xe (cross-entropy) or scst (self-critical, reward CIDEr-D and BLEU; needs --init).")
    ] = "xe",
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A checkpoint to go on from; its encoder and sizes are kept.")
    ] = None,
    encoder: Encoder = "efficientnet-lite2",
    encoder_weights: EncoderWeights = None,
    cut: Annotated[
        int | None, typer.Option(help="Train the encoder's layers after this one too.", show_default="none")
    ] = None,
    attention: Annotated[str, typer.Option(help="soft or hard.")] = "soft",
    variant: Annotated[str, typer.Option(help="paper or tutorial.")] = "paper",
    gate: Annotated[str | None, typer.Option(help="scalar or vector.", show_default="the variant's")] = None,
    hidden_dim: Annotated[int, typer.Option(min=8)] = 512,
    embed_dim: Annotated[int, typer.Option(min=8)] = 512,
    attention_dim: Annotated[int, typer.Option(min=8)] = 256,
    epochs: Epochs = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos per step; each brings five captions.")] = 64,
    accumulation: Annotated[int, typer.Option(min=1, help="Parts that a batch is split into, to save memory.")] = 1,
    learning_rate: LearningRate = 1e-3,
    tail_rate: Annotated[
        float, typer.Option(min=0, help="Learning rate of the encoder's trained layers, relative.")
    ] = 0.05,
    patience: Patience = 4,
    validation_photos: Annotated[int, typer.Option(min=1)] = 500,
    precision: Precision = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train Show, Attend and Tell; RUN/best is the checkpoint with the best CIDEr-D of generated validation captions."""
    try:
        from triptych.train.start import sat_run
    except ModuleNotFoundError as error:
        raise TriptychError(f"training needs {error.name}: pip install 'triptych[train]'") from None

    make_folder(run)
    record = sat_run(
        data=data,
        run=run,
        objective=objective,
        init=init,
        encoder=encoder,
        encoder_weights=encoder_weights,
        cut=cut,
        attention=attention,
        variant=variant,
        gate=gate,
        hidden_dim=hidden_dim,
        embed_dim=embed_dim,
        attention_dim=attention_dim,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        tail_rate=tail_rate,
        patience=patience,
        validation_photos=validation_photos,
        precision=precision,
        seed=seed,
    )
    if record is not None:  # None in the processes beside the main one
        emit(record, as_json, f"{run / 'best'}: {json.dumps(record)}")


@training.command("blip2")
def train_blip2(
    data: Data,
    run: Run,
    stage: Annotated[
        int,
        typer.Option(
            help="1: contrast, matching, grounded generation; 2: also captions by the language model; 3: also questions."
        ),
    ] = 1,
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A checkpoint to go on from (stages 2 and 3).")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="TERM=W",
            help="A term of the loss: itc, itm, itg, caption, scst (captions, self-critical), question or pair.",
            show_default="the stage's",
        ),
    ] = None,
    encoder: Encoder = "efficientnet-lite2",
    encoder_weights: EncoderWeights = None,
    image_size: ImageSize = 320,
    lm: LanguageModel = "smollm2-135m",
    queries: Annotated[int, typer.Option(min=1, max=256)] = 16,
    captions_per_photo: Annotated[
        int, typer.Option(min=1, help="Of each photo in a step; with scst: captions drawn of it.")
    ] = 2,
    epochs: Epochs = 8,
    batch_size: Annotated[int, typer.Option(min=2, help="Photos per step.")] = 64,
    learning_rate: LearningRate = 5e-4,
    bert_rate: Annotated[float, typer.Option(min=0, help="Learning rate of BERT's layers, relative.")] = 0.3,
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.05,
    patience: Patience = 4,
    validation_photos: Annotated[int, typer.Option(min=2)] = 500,
    precision: Precision = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train BLIP-2; RUN/best is the checkpoint that did best on the validation photos: by CIDEr-D where the language model learns to
    caption, else by R@1.

    With --weight question=1 alone, the photos need questions with answers and no captions (judged by right answers).
    """
    try:
        from triptych.train.blip2.objective import Blip2Recipe
        from triptych.train.blip2.start import blip2_run
        from triptych.train.loop import LoopConfig
    except ModuleNotFoundError as error:
        raise TriptychError(f"training needs {error.name}: pip install 'triptych[train]'") from None

    loop = LoopConfig(
        epochs, batch_size, 1, learning_rate, weight_decay, patience=patience, precision=precision, seed=seed
    )
    recipe = Blip2Recipe(
        stage,
        named_numbers(weights, "--weight") if weights else None,
        captions_per_photo,
        bert_rate=bert_rate,
        validation_photos=validation_photos,
        loop=loop,
    )
    make_folder(run)
    record = blip2_run(
        data=data,
        run=run,
        recipe=recipe,
        init=init,
        encoder=encoder,
        encoder_weights=encoder_weights,
        image_size=image_size,
        lm=lm,
        queries=queries,
    )
    if record is not None:  # None in the processes beside the main one
        emit(record, as_json, f"{run / 'best'}: {json.dumps(record)}")


@training.command("flamingo")
def train_flamingo(
    data: Data,
    run: Run,
    drawings: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also named pictures, such as `python -m triptych.data.emoji DIR` makes."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A checkpoint to go on from; its parts and sizes are kept.")
    ] = None,
    shares: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            metavar="TASK=S",
            help="How often a task is drawn: caption, name, question, dialogue, pair, compare, binding or scst (captions, self-critical).",
            show_default="a mixture of all but scst, which needs --init",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="TASK=W", help="Of a task's sequences in the loss.", show_default="1 each"),
    ] = None,
    encoder: Encoder = "efficientnet-lite2",
    encoder_weights: EncoderWeights = None,
    image_size: ImageSize = 320,
    lm: LanguageModel = "smollm2-135m",
    image_token: Annotated[
        str | None,
        typer.Option(
            help="The special token of the language model that stands for a picture.", show_default="a spare one"
        ),
    ] = None,
    dim: Annotated[int, typer.Option(min=8, help="Width of the visual tokens.")] = 384,
    latents: Annotated[int, typer.Option(min=1, max=1024, help="Visual tokens of a picture.")] = 32,
    resampler_layers: Annotated[int, typer.Option(min=1)] = 2,
    every: Annotated[int, typer.Option(min=1, help="A gated block before every n-th block.")] = 3,
    ffn_factor: Annotated[int, typer.Option(min=1, help="Width of the feed-forward layers, relative.")] = 2,
    look: Annotated[str, typer.Option(help="Text looks at the last picture before it, or at all.")] = "last",
    max_tokens: Annotated[int, typer.Option(min=16, help="Of a training sequence.")] = 112,
    epochs: Epochs = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 8,
    learning_rate: LearningRate = 5e-4,
    gate_rate: Annotated[float, typer.Option(min=0, help="Learning rate of the gates, relative.")] = 10.0,
    patience: Patience = 4,
    validation_photos: Annotated[int, typer.Option(min=1, help="Captioned at each validation.")] = 200,
    precision: Precision = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train Flamingo; RUN/best is the checkpoint with the best CIDEr-D plus share of new names bound rightly."""
    try:
        from triptych.train.flamingo.objective import SHARES, FlamingoRecipe
        from triptych.train.flamingo.start import flamingo_run
        from triptych.train.loop import LoopConfig
    except ModuleNotFoundError as error:
        raise TriptychError(f"training needs {error.name}: pip install 'triptych[train]'") from None

    loop = LoopConfig(
        epochs, batch_size, 1, learning_rate, patience=patience, precision=precision, seed=seed, save_minutes=3
    )
    recipe = FlamingoRecipe(
        named_numbers(shares, "--share") if shares else SHARES,
        named_numbers(weights or [], "--weight"),
        max_tokens=max_tokens,
        gate_rate=gate_rate,
        validation_photos=validation_photos,
        loop=loop,
    )
    sizes = {
        "dim": dim,
        "latents": latents,
        "resampler_layers": resampler_layers,
        "every": every,
        "ffn_factor": ffn_factor,
        "look": look,
    }
    make_folder(run)
    record = flamingo_run(
        data=data,
        run=run,
        recipe=recipe,
        drawings=drawings,
        init=init,
        encoder=encoder,
        encoder_weights=encoder_weights,
        image_size=image_size,
        lm=lm,
        image_token=image_token,
        sizes=sizes,
    )
    if record is not None:  # None in the processes beside the main one
        emit(record, as_json, f"{run / 'best'}: {json.dumps(record)}")


def named_numbers(given: list[str], option: str) -> dict[str, float]:
    """``["itc=1", "itm=0.5"]`` as a dict. Raises InputError for what is no number of 0 or more, or said twice."""
    try:
        numbers = {name: float(value) for name, value in (pair.split("=") for pair in given)}
    except ValueError:
        numbers = {}
    if len(numbers) < len(given) or not all(0 <= number < math.inf for number in numbers.values()):
        raise InputError(
            f"{option} takes NAME=NUMBER, each name once and no number below 0, such as {option} caption=1"
        )
    return numbers
