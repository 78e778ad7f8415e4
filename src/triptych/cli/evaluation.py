"""``triptych eval``: measure a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.common import Beams, Data, Json, Limit, Model, Split, app, show

evaluation = typer.Typer(help="Measure a model on a data set.")
app.add_typer(evaluation, name="eval")

Blip2 = Annotated[str, typer.Option("--model", help="blip2, or a checkpoint directory.")]
Answerer = Annotated[str, typer.Option("--model", help="blip2, flamingo, or a checkpoint directory.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw.")]


@evaluation.command("caption")
def eval_caption(
    data: Data,
    split: Split = "test",
    model: Model = "sat",
    beams: Beams = None,
    length_penalty: Annotated[float | None, typer.Option(show_default="the model's")] = None,
    writer: Annotated[
        str | None, typer.Option(help="BLIP-2: lm or qformer (grounded generation).", show_default="the model's")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, max=64, help="Flamingo: captioned training photos in the prompt.")] = 0,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every caption, as JSON lines.")
    ] = None,
    as_json: Json = False,
) -> None:
    """BLEU, METEOR (needs Java), ROUGE-L and CIDEr-D of the model's captions."""
    from triptych.evaluate.run import caption_metrics

    settings = {k: v for k, v in (("beams", beams), ("length_penalty", length_penalty)) if v is not None}
    show(caption_metrics(model, data, split, limit, settings, output, writer, shots), as_json)


@evaluation.command("retrieval")
def eval_retrieval(
    data: Data,
    split: Split = "test",
    model: Blip2 = "blip2",
    candidates: Annotated[int, typer.Option(min=1, help="The best of contrast that matching ranks again.")] = 6,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Recall of photos for texts and texts for photos, by contrast and after re-ranking by matching."""
    from triptych.evaluate.retrieval import retrieval_metrics

    show(retrieval_metrics(model, data, split, limit, candidates), as_json)


@evaluation.command("choice")
def eval_choice(
    data: Data,
    split: Split = "test",
    model: Answerer = "blip2",
    pairs: Annotated[int, typer.Option(min=1, help="How many; each is asked in both orders.")] = 250,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Two photos, "Which photo shows ...?": by matching, and through the language model."""
    from triptych.evaluate.choice import choice_metrics

    show(choice_metrics(model, data, split, limit, pairs, seed), as_json)


@evaluation.command("vqa")
def eval_vqa(
    data: Data,
    split: Split = "test",
    model: Answerer = "blip2",
    per_photo: Annotated[int, typer.Option(min=1, help="Questions made of a photo's captions.")] = 4,
    seed: Seed = 0,
    limit: Limit = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write every answer, as JSON lines.")] = None,
    as_json: Json = False,
) -> None:
    """Questions about one photo, beside what can be answered without looking."""
    from triptych.evaluate.vqa import vqa_metrics

    show(vqa_metrics(model, data, split, limit, per_photo, seed, output), as_json)


@evaluation.command("fewshot")
def eval_fewshot(
    data: Data,
    split: Split = "test",
    model: Annotated[str, typer.Option("--model", help="flamingo, or a checkpoint directory.")] = "flamingo",
    shots: Annotated[
        list[int] | None,
        typer.Option(min=1, max=16, help="Examples of each name; repeat for several.", show_default="1, 3, 5"),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many prompts of each kind.")] = 200,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Two new names for two kinds of pictures that training never named: how often the right one is found (chance: 50%)."""
    from triptych.evaluate.fewshot import fewshot_metrics

    show(fewshot_metrics(model, data, split, limit, shots or [1, 3, 5], episodes, seed), as_json)


@evaluation.command("judgments")
def eval_judgments(data: Data, as_json: Json = False) -> None:
    """How each caption metric agrees with people: Kendall's tau on Flickr8k's expert judgments."""
    from triptych.evaluate.run import judgment_taus

    show(judgment_taus(data), as_json)


@evaluation.command("attention")
def eval_attention(
    data: Data,
    split: Annotated[str | None, typer.Option(help="Which photos.", show_default="all")] = None,
    model: Model = "sat",
    as_json: Json = False,
) -> None:
    """How much of a word's attention falls into the boxes of what it names (data with COCO's boxes)."""
    from triptych.evaluate.attention import attention_in_boxes

    show(attention_in_boxes(model, data, split), as_json)
