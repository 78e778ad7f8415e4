"""The demo: every system on the bundled photos, what it said and where it looked, in one report that needs no network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL.Image import Image

from triptych.figures.maps import draw_words, write_png
from triptych.figures.page import Entry, Reading, Table, html_page
from triptych.io.files import write_file
from triptych.io.images import load_image
from triptych.tasks import Answer, Blip2Tasks, FlamingoTasks, load

EXAMPLES = Path(__file__).with_name("examples")
TITLE = "Triptych: what the models said, and where they looked"
SYSTEMS = {"sat": "Show, Attend and Tell", "flamingo": "Flamingo", "blip2": "BLIP-2"}
QUESTIONS = (("tennis.jpg", "What is the man doing?"), ("dog.jpg", "What animal is in the photo?"))
PAIRS = (
    (("dog.jpg", "baseball.jpg"), "Which photo shows a dog?"),
    (("coast.jpg", "cyclist.jpg"), "Which photo shows a man riding a bike?"),
)
NAMES = (("horse-noto.png", "a dax"), ("owl-noto.png", "a blicket"))
NAMED = "horse-openmoji.png"
TALKED_ABOUT = "baseball.jpg"
TALK = ("What is in the photo?", "How many people are there?", "Is there a dog in the photo?")
ALIKE = ("horse-noto.png", "horse-openmoji.png", "riders.jpg")
ABOUT_ALIKE = ("What do the photos have in common?", "How do the photos differ?")
TEXTS = (
    "a skateboarder does a trick in a pool",
    "a man on a bike on a road",
    "two people riding horses on the beach",
    "a man playing tennis",
    "a baseball game",
    "a dog in a room",
    "a bird flying over the sea",
    "a big bird on a rock by the sea",
)


def run(out: Path) -> Path:
    """All systems on the bundled photos; prints what is found, draws the maps into ``out``; returns the path of the report."""
    credits = json.loads((EXAMPLES / "credits.json").read_text(encoding="utf-8"))
    photos = {credit["file"]: load_image(EXAMPLES / credit["file"]) for credit in credits}
    models: dict[str, Any] = {name: load(name) for name in SYSTEMS}
    said = {file: captions(file, photo, models, out) for file, photo in photos.items()}
    entries = [entry((photos[c["file"]],), said[c["file"]], c) for c in credits]
    report = out / "report.html"
    flamingo = models["flamingo"]
    asked = [*questions(photos, models), *examples(flamingo), *dialogue(photos, flamingo), *alike(photos, flamingo)]
    tables = [matching(photos, models["blip2"]), gates(models["flamingo"])]
    write_file(report, html_page([*entries, *asked], TITLE, tables).encode())
    return report.resolve()


def captions(file: str, photo: Image, models: dict[str, Any], out: Path) -> list[Reading]:
    """Each system's caption of a photo."""
    print(file, flush=True)
    readings = []
    for name, model in models.items():
        answer, seconds = timed(model.caption, photo, explain=True)
        print(f"  {SYSTEMS[name]:22} {answer.text}  ({seconds:.1f} s)", flush=True)
        readings += reading(SYSTEMS[name], answer, seconds)
        if answer.evidence is not None:
            write_png(out / f"{Path(file).stem}-{name}.png", draw_words(photo, answer.evidence))
    return readings


def questions(photos: dict[str, Image], models: dict[str, Any]) -> list[Entry]:
    """Questions about one photo, and about which of two, by the systems that answer."""
    print("questions", flush=True)
    entries = []
    asked = [((file,), question, None) for file, question in QUESTIONS]
    for files, question, choices in [*asked, *((files, question, ("left", "right")) for files, question in PAIRS)]:
        shown = tuple(photos[file] for file in files)
        readings = []
        for name in ("flamingo", "blip2"):
            answer, seconds = timed(models[name].ask, list(shown), question, choices, explain=True)
            print(f"  {' | '.join(files)}: {question} {answer.text}  ({SYSTEMS[name]}, {seconds:.1f} s)", flush=True)
            readings += reading(SYSTEMS[name], answer, seconds)
        entries.append(Entry(shown, tuple(readings), question=question))
    return entries


def examples(model: FlamingoTasks) -> list[Entry]:
    """Flamingo names a picture from one example of each name."""
    shots = [(drawing(file), name) for file, name in NAMES]
    query = drawing(NAMED)
    answer, seconds = timed(model.complete, query, shots, "This is", [name for _, name in NAMES], explain=True)
    print(f"Flamingo: {NAMED} after {', '.join('='.join(shot) for shot in NAMES)}: {answer.text}", flush=True)
    told = ", ".join(f"the {place} is {name}" for place, (_, name) in zip(("first", "second"), NAMES, strict=True))
    shown = (*(picture for picture, _ in shots), query)
    question = f"If {told}, what is the third?"
    return [Entry(shown, tuple(reading("Flamingo", answer, seconds)), question=question, credit=drawn_by())]


def dialogue(photos: dict[str, Image], model: FlamingoTasks) -> list[Entry]:
    """Flamingo talks about a photo."""
    print(f"Flamingo: about {TALKED_ABOUT}", flush=True)
    chat, entries = model.chat(), []
    chat.add(photos[TALKED_ABOUT])
    for question in TALK:
        answer, seconds = timed(chat.answer, question, explain=True)
        print(f"  {question} {answer.text}  ({seconds:.1f} s)", flush=True)
        entries.append(Entry((photos[TALKED_ABOUT],), tuple(reading("Flamingo", answer, seconds)), question=question))
    return entries


def alike(photos: dict[str, Image], model: FlamingoTasks) -> list[Entry]:
    """Flamingo compares three pictures of one animal, from what it says of each."""
    print(f"Flamingo: about {', '.join(ALIKE)}", flush=True)
    shown, entries = tuple(photos[file] if file in photos else drawing(file) for file in ALIKE), []
    for question in ABOUT_ALIKE:
        answer, seconds = timed(model.ask, list(shown), question, explain=True)
        print(f"  {question} {answer.text}  ({seconds:.1f} s)", flush=True)
        entries.append(Entry(shown, tuple(reading("Flamingo", answer, seconds)), question=question, credit=drawn_by()))
    return entries


def drawn_by() -> str:
    """Whose the drawings are, and their licences."""
    credits = json.loads((EXAMPLES / "drawings" / "credits.json").read_text(encoding="utf-8"))
    return "; ".join(sorted({f"{credit['source']} ({credit['licence']})" for credit in credits}))


def drawing(file: str) -> Image:
    return load_image(EXAMPLES / "drawings" / file)


def gates(model: FlamingoTasks) -> Table:
    """How far the gates before the language model's blocks have opened."""
    found = model.model.gates()
    every = model.model.config.every
    columns = tuple(f"block {(i + 1) * every}" for i in range(len(found)))
    scores = tuple(tuple(abs(pair[kind]) for pair in found) for kind in (0, 1))
    return Table(
        "Flamingo: how far its gates are open, |tanh| in percent", ("attention", "feed-forward"), columns, scores
    )


def matching(photos: dict[str, Image], model: Blip2Tasks) -> Table:
    """How likely each text matches each photo."""
    matches, seconds = timed(model.match, list(photos.values()), TEXTS)
    print(f"BLIP-2: {len(matches)} pairs of a photo and a text matched  ({seconds:.1f} s)", flush=True)
    scores = [[0.0] * len(TEXTS) for _ in photos]
    for match in matches:
        scores[match.image][match.text] = match.itm_prob
    for file, row in zip(photos, scores, strict=True):
        print(f"  {file:14} {TEXTS[row.index(max(row))]}  ({100 * max(row):.0f} %)", flush=True)
    title = "BLIP-2: how likely each text matches each photo, percent"
    return Table(title, tuple(photos.values()), TEXTS, tuple(map(tuple, scores)))


def reading(name: str, answer: Answer, seconds: float) -> list[Reading]:
    """Nothing where a model said nothing."""
    return [Reading(name, answer.text, answer.evidence, answer.logprob, seconds)] if answer.evidence else []


def entry(shown: tuple[Image, ...], readings: list[Reading], credit: dict[str, Any]) -> Entry:
    return Entry(
        shown,
        tuple(readings),
        name=credit["file"],
        credit="Flickr, by way of COCO",
        credit_url=credit["photo"],
        licence=credit["licence"],
    )


def timed(work: Callable[..., Any], *arguments: Any, **settings: Any) -> tuple[Any, float]:
    """What ``work`` returns, and its seconds."""
    started = time.perf_counter()
    found = work(*arguments, **settings)
    return found, time.perf_counter() - started
