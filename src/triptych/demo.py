"""The demo: every system on the bundled photos, what it said and where it looked, in one report that needs no network."""

from __future__ import annotations

import json
import time
from pathlib import Path

from triptych.explain import draw_words, write_file, write_png
from triptych.images import load_image
from triptych.page import Entry, Reading, html_page
from triptych.tasks import load

EXAMPLES = Path(__file__).with_name("examples")
TITLE = "Triptych: what the models said, and where they looked"


def run(out: Path) -> Path:
    """Caption the bundled photos, print what is found, draw the maps into ``out``; returns the path of the report."""
    credits = json.loads((EXAMPLES / "credits.json").read_text(encoding="utf-8"))
    print("Show, Attend and Tell: captions of the bundled photos", flush=True)
    captioner = load("sat")
    entries = []
    for credit in credits:
        photo = load_image(EXAMPLES / credit["file"])
        started = time.perf_counter()
        answer = captioner.caption(photo, explain=True)
        seconds = time.perf_counter() - started
        print(f"  {credit['file']:14} {answer.text}  ({seconds:.1f} s)", flush=True)
        if answer.evidence is None:
            continue
        write_png(out / f"{Path(credit['file']).stem}.png", draw_words(photo, answer.evidence))
        said = Reading("Show, Attend and Tell", answer.text, answer.evidence, answer.logprob, seconds)
        entries.append(
            Entry(
                (photo,),
                (said,),
                name=credit["file"],
                credit="Flickr, by way of COCO",
                credit_url=credit["photo"],
                licence=credit["licence"],
            )
        )
    report = out / "report.html"
    write_file(report, html_page(entries, TITLE).encode())
    return report.resolve()
