"""BLIP-2 in one process: questions, search with re-ranking, indexing, and the matching grid beside transformers'.

    python -m benchmarks.blip2_use ask|search|index|grid [--model blip2]

Prints one JSON object: what was measured -> seconds (or photos).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

PHOTOS = 64  # of the index
LIBRARY = 1000  # photos that are searched
CANDIDATES = 32
GRID = 32  # photos and texts that are matched, all with all
QUESTION = "What animal is in the photo?"


def seconds(work: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def random_photos(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in range(count)]


def ask(model: str, repeats: int) -> dict[str, float]:
    """A question about a photo not seen before: the whole answer, and its parts run again one by one."""
    from triptych.tasks import Blip2Tasks, load
    from triptych.tasks.asking import PictureQuestion

    measured: dict[str, list[float]] = {}
    started = time.perf_counter()
    tasks = load(model)
    assert isinstance(tasks, Blip2Tasks)
    loading = time.perf_counter() - started
    tasks.ask(random_photos(1, 99)[0], QUESTION)
    for photo in random_photos(repeats):
        fresh = photo.rotate(180)
        with torch.inference_mode():
            parts = {
                "total": seconds(tasks.ask, photo, QUESTION),
                "encode the photo": seconds(tasks.encode, [fresh]),
                "Q-Former": seconds(tasks.read, [tasks.question_prompt(PictureQuestion([fresh], QUESTION))]),
            }
            (row,) = tasks.read([tasks.question_prompt(PictureQuestion([fresh], QUESTION))])
            parts["language model, prompt"] = seconds(tasks.engine.prefill, [row.pieces])
        for name, value in parts.items():
            measured.setdefault(name, []).append(value)
    return {"load": loading, **{name: median(values) for name, values in measured.items()}}


def search(model: str, repeats: int) -> dict[str, float]:
    """One text over the features of 1,000 photos, then the 32 best matched again (their photos already encoded, or not)."""
    from triptych.tasks import load_matcher

    tasks = load_matcher(model)
    photos = random_photos(CANDIDATES)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(LIBRARY, *tasks.itc_images(photos[:1]).shape[1:])).astype(np.float32)

    def contrast() -> None:
        scores = (features @ tasks.itc_texts(["a dog in the snow"])[0]).max(1)
        np.argpartition(scores, -CANDIDATES)[-CANDIDATES:]

    contrast()
    times = {"contrast over 1,000 photos": median(seconds(contrast) for _ in range(repeats))}
    times["re-rank 32, photos to encode"] = seconds(lambda: tasks.match(photos, "a dog in the snow"))
    again = [seconds(lambda: tasks.match(photos, "a dog in the snow")) for _ in range(repeats)]
    return times | {"re-rank 32, photos remembered": median(again)}


def index(model: str, repeats: int) -> dict[str, float]:
    """Photos per second into a library on disk, from JPEG files."""
    from triptych.library import as_matcher, index_photos, scan
    from triptych.tasks import load

    with tempfile.TemporaryDirectory() as folder:
        for i, photo in enumerate(random_photos(PHOTOS)):
            photo.save(Path(folder) / f"{i}.jpg")
        matcher = as_matcher(load(model), model)
        listing = scan(Path(folder), print)
        taken = seconds(lambda: index_photos(listing, Path(folder) / "library", matcher, print))
    return {"photos": PHOTOS, "seconds": taken}


def grid(model: str, repeats: int) -> dict[str, float]:
    """Every photo with every text, at BERT-base size behind a ViT-B/16, random weights: ours computes a photo once."""
    import transformers
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    from triptych.checkpoints.tables.blip2 import HF_BLIP2
    from triptych.checkpoints.tables.keys import load as load_theirs
    from triptych.nn.configs import QFormerConfig, ViTConfig
    from triptych.nn.vit import ViT
    from triptych.systems.blip2 import Blip2
    from triptych.systems.configs import Blip2Config as Ours

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    vision = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "patch_size": 16,
    }
    qformer = {"encoder_hidden_size": 768, "use_qformer_text_input": True, "vocab_size": 30523}
    config = Blip2Config(vision_config=vision | {"image_size": 224}, qformer_config=qformer, image_text_hidden_size=256)
    torch.manual_seed(0)
    theirs: Any = Blip2ForImageTextRetrieval(config)
    theirs.eval()
    eva = {"eps": 1e-6, "patch_bias": True, "norm_before": False, "class_token": True}
    encoder = ViT(ViTConfig(768, 12, 12, 3072, 16, 224, **eva))  # type: ignore[arg-type]
    ours = Blip2(Ours(QFormerConfig.bert_base(768), 256, normalise=False), encoder, None).eval()
    load_theirs(ours, theirs.state_dict(), HF_BLIP2, optional_prefixes=("heads.",))
    pixels = torch.randn(GRID, 3, 224, 224)
    ids, mask = torch.randint(1000, 30000, (GRID, 12)), torch.ones(GRID, 12, dtype=torch.bool)

    def our_row(i: int) -> torch.Tensor:
        image = ours.image_keys_values(ours.encode(pixels[i : i + 1]))
        assert ours.heads is not None
        return ours.heads.itm_logits(ours.qformer.encode_both(image, ids, mask).queries)

    def their_row(i: int) -> torch.Tensor:
        photo = pixels[i : i + 1].expand(GRID, -1, -1, -1)
        texts = {"input_ids": ids, "attention_mask": mask.long(), "use_image_text_matching_head": True}
        return theirs(pixel_values=photo, **texts).logits_per_image

    with torch.inference_mode():
        torch.testing.assert_close(our_row(0), their_row(0), rtol=1e-3, atol=1e-3)
        pairs = [(seconds(our_row, i), seconds(their_row, i)) for i in range(1, repeats + 1)]
        row_of_ours, row_of_theirs = (median(each) for each in zip(*pairs, strict=True))
        return {
            f"a row of {GRID}, ours": row_of_ours,
            f"a row of {GRID}, transformers": row_of_theirs,
            f"{GRID} x {GRID}, ours": seconds(lambda: [our_row(i) for i in range(GRID)]),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("ask", "search", "index", "grid"))
    parser.add_argument("--model", default="blip2")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    work = {"ask": ask, "search": search, "index": index, "grid": grid}[arguments.what]
    print(json.dumps(work(arguments.model, arguments.repeats)))
