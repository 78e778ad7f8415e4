"""The demo: every system's answers about the bundled photos, and where it looked, in one report that needs no network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL.Image import Image

from triptych.figures.maps import draw_words, write_png
from triptych.figures.page import PageEntry, Reading, ScoreTable, html_page
from triptych.io.files import write_file
from triptych.io.images import load_image
from triptych.tasks import Answer, Blip2Tasks, FlamingoTasks, load

EXAMPLES = Path(__file__).with_name("examples")
TITLE = "Triptych: what the models said, and where they looked"
SYSTEM_TITLES = {"sat": "Show, Attend and Tell", "flamingo": "Flamingo", "blip2": "BLIP-2"}
QUESTIONS = (("tennis.jpg", "What is the man doing?"), ("dog.jpg", "What animal is in the photo?"))
PAIRS = (
    (("dog.jpg", "baseball.jpg"), "Which photo shows a dog?"),
    (("coast.jpg", "cyclist.jpg"), "Which photo shows a man riding a bike?"),
)
PAIR_CHOICES = ("left", "right")
NAME_SHOTS = (("horse-noto.png", "a dax"), ("owl-noto.png", "a blicket"))
NAME_QUERY = "horse-openmoji.png"
CHAT_PHOTO = "baseball.jpg"
CHAT_QUESTIONS = ("What is in the photo?", "How many people are there?", "Is there a dog in the photo?")
GROUPS = (
    (("horse-noto.png", "horse-openmoji.png", "riders.jpg"), "What do the photos have in common?"),
    (("tennis.jpg", "baseball.jpg"), "How do the photos differ?"),
)
MATCH_TEXTS = (
    "a skateboarder does a trick in a pool",
    "a man on a bike on a road",
    "two people riding horses on the beach",
    "a man playing tennis",
    "a baseball game",
    "a dog in a room",
    "a bird flying over the sea",
    "a big bird on a rock by the sea",
    "a kitchen with a microwave",
    "two pizzas on a stove",
    "cars and buses on a wet street",
    "a cat beside a keyboard",
)


def run(out: Path) -> Path:
    """Run all systems on the bundled photos and print their answers; write the figures and the report into ``out``.

    Returns the path of the report.
    """
    credits = bundled_photos()
    photos = {credit["file"]: load_image(EXAMPLES / credit["file"]) for credit in credits}
    models: dict[str, Any] = {name: load(name) for name in SYSTEM_TITLES}
    readings = {file: caption_photo(file, photo, models, out) for file, photo in photos.items()}
    entries = [photo_entry(photos[c["file"]], readings[c["file"]], c) for c in credits]
    report = out / "report.html"
    flamingo = models["flamingo"]
    others = [*questions(photos, models), *examples(flamingo), *chat_about(photos, flamingo), *groups(photos, flamingo)]
    tables = [matching(photos, models["blip2"]), gates(models["flamingo"])]
    write_file(report, html_page([*entries, *others], TITLE, tables).encode())
    if not all(model.explains for model in models.values()):
        print("No maps of where Flamingo and BLIP-2 looked: they need torch (pip install 'triptych[torch]')")
    return report.resolve()


def bundled_photos() -> list[dict[str, Any]]:
    """The file, source and licence of each photo."""
    credits: list[dict[str, Any]] = json.loads((EXAMPLES / "credits.json").read_text(encoding="utf-8"))
    return credits


def caption_photo(file: str, photo: Image, models: dict[str, Any], out: Path) -> list[Reading]:
    """Each system's caption of a photo."""
    print(file, flush=True)
    readings = []
    for name, model in models.items():
        answer, seconds = timed(model.caption, photo, explain=model.explains)
        print(f"  {SYSTEM_TITLES[name]:22} {answer.text}  ({seconds:.1f} s)", flush=True)
        readings += as_readings(SYSTEM_TITLES[name], answer, seconds)
        if answer.evidence is not None:
            write_png(out / f"{Path(file).stem}-{name}.png", draw_words(photo, answer.evidence))
    return readings


def questions(photos: dict[str, Image], models: dict[str, Any]) -> list[PageEntry]:
    """Questions about one photo, and about which of two, by the systems that answer."""
    print("questions", flush=True)
    entries = []
    one = [((file,), question, None) for file, question in QUESTIONS]
    for files, question, choices in [*one, *((files, question, PAIR_CHOICES) for files, question in PAIRS)]:
        images = tuple(photos[file] for file in files)
        readings = []
        for name in ("flamingo", "blip2"):
            model = models[name]
            answer, seconds = timed(model.ask, list(images), question, choices, explain=model.explains)
            print(
                f"  {' | '.join(files)}: {question} {answer.text}  ({SYSTEM_TITLES[name]}, {seconds:.1f} s)", flush=True
            )
            readings += as_readings(SYSTEM_TITLES[name], answer, seconds)
        entries.append(PageEntry(images, tuple(readings), question=question))
    return entries


def examples(model: FlamingoTasks) -> list[PageEntry]:
    """Flamingo names a picture from one example of each name."""
    shots = [(drawing(file), name) for file, name in NAME_SHOTS]
    query = drawing(NAME_QUERY)
    choices = [name for _, name in NAME_SHOTS]
    answer, seconds = timed(model.complete, query, shots, "This is", choices, explain=model.explains)
    print(f"Flamingo: {NAME_QUERY} after {', '.join('='.join(shot) for shot in NAME_SHOTS)}: {answer.text}", flush=True)
    names = ", ".join(
        f"the {place} is {name}" for place, (_, name) in zip(("first", "second"), NAME_SHOTS, strict=True)
    )
    images = (*(picture for picture, _ in shots), query)
    question = f"If {names}, what is the third?"
    return [
        PageEntry(images, tuple(as_readings("Flamingo", answer, seconds)), question=question, credit=drawing_credits())
    ]


def chat_about(photos: dict[str, Image], model: FlamingoTasks) -> list[PageEntry]:
    """Flamingo talks about a photo."""
    print(f"Flamingo: about {CHAT_PHOTO}", flush=True)
    chat, entries = model.chat(), []
    chat.add(photos[CHAT_PHOTO])
    for question in CHAT_QUESTIONS:
        answer, seconds = timed(chat.answer, question, explain=model.explains)
        print(f"  {question} {answer.text}  ({seconds:.1f} s)", flush=True)
        entries.append(
            PageEntry((photos[CHAT_PHOTO],), tuple(as_readings("Flamingo", answer, seconds)), question=question)
        )
    return entries


def groups(photos: dict[str, Image], model: FlamingoTasks) -> list[PageEntry]:
    """Flamingo compares several pictures, from its captions of each."""
    entries = []
    for files, question in GROUPS:
        images = tuple(photos[file] if file in photos else drawing(file) for file in files)
        answer, seconds = timed(model.ask, list(images), question, explain=model.explains)
        print(f"Flamingo: {', '.join(files)}: {question} {answer.text}  ({seconds:.1f} s)", flush=True)
        credit = "" if photos.keys() >= set(files) else drawing_credits()
        entries.append(
            PageEntry(images, tuple(as_readings("Flamingo", answer, seconds)), question=question, credit=credit)
        )
    return entries


def drawing_credits() -> str:
    """The sources of the drawings, with their licences."""
    credits = json.loads((EXAMPLES / "drawings" / "credits.json").read_text(encoding="utf-8"))
    return "; ".join(sorted({f"{credit['source']} ({credit['licence']})" for credit in credits}))


def drawing(file: str) -> Image:
    return load_image(EXAMPLES / "drawings" / file)


def gates(model: FlamingoTasks) -> ScoreTable:
    """How far the gates before the language model's blocks are open."""
    pairs = list(model.info()["gates"].items())
    columns = tuple(name.removeprefix("before ") for name, _ in pairs)
    scores = tuple(tuple(abs(pair[kind]) for _, pair in pairs) for kind in (0, 1))
    return ScoreTable(
        "Flamingo: how far its gates are open, |tanh| in percent", ("attention", "feed-forward"), columns, scores
    )


def matching(photos: dict[str, Image], model: Blip2Tasks) -> ScoreTable:
    """How likely each text matches each photo."""
    matches, seconds = timed(model.match, list(photos.values()), MATCH_TEXTS)
    print(f"BLIP-2: {len(matches)} pairs of a photo and a text matched  ({seconds:.1f} s)", flush=True)
    scores = [[0.0] * len(MATCH_TEXTS) for _ in photos]
    for match in matches:
        scores[match.image][match.text] = match.itm_prob
    best = {match.image: match for match in sorted(matches, key=lambda match: match.rerank)}
    for number, file in enumerate(photos):
        print(f"  {file:14} {MATCH_TEXTS[best[number].text]}  ({100 * best[number].itm_prob:.0f} %)", flush=True)
    title = "BLIP-2: how likely each text matches each photo, percent"
    return ScoreTable(title, tuple(photos.values()), MATCH_TEXTS, tuple(map(tuple, scores)))


def as_readings(name: str, answer: Answer, seconds: float) -> list[Reading]:
    """The answer as a reading; none where a model wrote nothing."""
    return [Reading(name, answer.text, answer.evidence, answer.logprob, seconds)] if answer.text else []


def photo_entry(photo: Image, readings: list[Reading], credit: dict[str, Any]) -> PageEntry:
    return PageEntry(
        (photo,),
        tuple(readings),
        name=credit["file"],
        credit="Flickr, by way of COCO",
        credit_url=credit["photo"],
        licence=credit["licence"],
    )


def timed(work: Callable[..., Any], *arguments: Any, **settings: Any) -> tuple[Any, float]:
    """What ``work`` returns, and the seconds it took."""
    started = time.perf_counter()
    result = work(*arguments, **settings)
    return result, time.perf_counter() - started
