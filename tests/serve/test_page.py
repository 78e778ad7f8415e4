"""The web page in headless Chromium, over a server of toy models."""

from __future__ import annotations

import base64
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from serving import running, running_app, settings
from toy_models import ToyBlip2, ToyFlamingo, ToySat, png

from triptych.serve.app import create_app

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-prefers-reduced-motion",
    "--window-size=1200,1000",
    "--lang=en",
)


@contextmanager
def chromium() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    models = {"sat": ToySat(), "flamingo": ToyFlamingo(), "blip2": ToyBlip2()}
    with running(models) as address, chromium() as driver:
        driver.get(address)
        wait(driver, is_ready)
        yield driver


def is_ready(driver: Any) -> Any:
    return driver.execute_script("return document.documentElement.dataset.ready")


def wait(driver: Any, ready: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 20).until(ready)


def find(driver: Any, css: str) -> Any:
    return driver.find_element("css selector", css)


def texts(driver: Any, css: str) -> list[str]:
    return [found.text for found in driver.find_elements("css selector", css)]


def upload(driver: Any, picker: str, path: Path, red: int) -> None:
    path.write_bytes(png(red, (40, 30)))
    choose = find(driver, f"[data-picker={picker}] input[type=file]")
    choose.send_keys(str(path))
    wait(driver, lambda d: d.find_elements("css selector", f"[data-picker={picker}] .drop img"))


def test_captions_with_maps(page: Any, tmp_path: Path) -> None:
    upload(page, "caption", tmp_path / "a.png", 200)
    find(page, "#caption-run").click()
    wait(page, lambda d: len(texts(d, "#caption-results .card .words button:first-child")) == 3)
    assert len(texts(page, "#caption-results .card")) == 3
    assert "A red of 200." in find(page, "#caption-results .card").text  # the sentence as it is written, once
    assert "The photo as a whole suggests: red, wall" in find(page, "#caption-results .card").text
    pixel = "return document.querySelector('#caption-view canvas').getContext('2d').getImageData(5, 5, 1, 1).data[2]"
    assert find(page, "#caption-view").is_displayed()
    page.execute_script("document.querySelectorAll('.words button')[0].focus()")
    assert find(page, ".words button").get_attribute("aria-pressed") == "true"
    assert "Show, Attend and Tell: A" in find(page, "#caption-view canvas").get_attribute("aria-label")
    assert find(page, "#caption-view figcaption").text == "Show, Attend and Tell: A"
    assert page.execute_script(pixel) < 10  # the toy's maps are even and full: nothing is veiled


def test_a_question(page: Any, tmp_path: Path) -> None:
    upload(page, "ask", tmp_path / "a.png", 90)
    find(page, "#ask-form button").click()
    wait(page, lambda d: len(texts(d, "#ask-results .card")) == 2)
    assert "photo?" in texts(page, "#ask-results .card")[0]


def test_two_photos_and_the_swap(page: Any, tmp_path: Path) -> None:
    upload(page, "left", tmp_path / "a.png", 10)
    upload(page, "right", tmp_path / "b.png", 20)
    before = [image.get_attribute("src") for image in page.find_elements("css selector", ".pair .drop img")]
    find(page, "#compare-form button").click()
    wait(page, lambda d: len(texts(d, "#compare-results .card")) == 2)
    find(page, "#swap").click()
    wait(page, lambda d: len(texts(d, "#compare-results .card")) == 4)
    after = [image.get_attribute("src") for image in page.find_elements("css selector", ".pair .drop img")]
    assert after == before[::-1]
    swapped, first = page.find_elements("css selector", "#compare-results .order")
    assert "it follows the photos" in swapped.text and "After the swap" not in first.text


def test_from_examples(page: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("dax", "blicket")):
        row = page.find_elements("css selector", ".shot")[number]
        (tmp_path / f"{name}.png").write_bytes(png(number * 99))
        row.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / f"{name}.png"))
        row.find_elements("css selector", "input")[-1].send_keys(name)
    upload(page, "query", tmp_path / "q.png", 5)
    wait(page, lambda d: len(d.find_elements("css selector", ".shot .drop img")) == 2)
    find(page, "#fewshot-form button").click()
    wait(page, lambda d: texts(d, "#fewshot-results .card"))
    (card,) = texts(page, "#fewshot-results .card")
    assert "number 2" in card and "dax: 73%" in card and "blicket: 27%" in card


def test_a_dialogue(page: Any, tmp_path: Path) -> None:
    upload(page, "chat", tmp_path / "a.png", 3)
    for turn, expected in enumerate(("0 turns before, 1 pictures now", "1 turns before, 0 pictures now")):
        find(page, "#chat-form input[name=message]").send_keys("What?")
        find(page, "#chat-form button").click()
        wait(
            page,
            lambda d, n=2 * turn + 2, e=expected: len(texts(d, "#turns li")) == n and e in texts(d, "#turns li")[-1],
        )


def test_gates_masks_search_and_language(page: Any) -> None:
    assert "0.100" in find(page, "#gates").text and "-0.400" in find(page, "#gates").text
    tables = page.find_elements("css selector", "table.mask")
    assert [len(table.find_elements("css selector", "td.on")) for table in tables] == [32, 64, 42]
    assert "--library" in find(page, "#find").text
    find(page, "#language").click()
    assert page.execute_script("return document.documentElement.lang") == "ko" and "캡션" in find(page, "nav").text
    alts = page.execute_script("return [...document.images].map(image => image.alt)")
    assert "고양이" in alts and all(alts)
    texts_of_page = page.execute_script("return [...document.querySelectorAll('[data-text]')].map(e => e.textContent)")
    names = re.compile(r"Flamingo|Q-Former|tanh|triptych index|--library my.library")
    assert [text for text in texts_of_page if re.search("[A-Za-z]{4}", names.sub("", text))] == []
    find(page, "#language").click()


def test_a_section_that_no_model_can_answer_says_so_and_the_status_stays_in_view() -> None:
    with running({"sat": ToySat()}) as address, chromium() as driver:
        driver.get(address)
        wait(driver, is_ready)
        assert "can do this" in find(driver, "#compare").text and "can do this" in find(driver, "#inside").text
        assert "can do this" not in find(driver, "#captions").text
        driver.execute_script("window.scrollTo(0, document.body.scrollHeight)")
        assert driver.execute_script("return document.getElementById('status').getBoundingClientRect().top") >= 0


def test_what_is_loaded_answers_while_others_are_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    def load(name: str) -> ToyFlamingo:
        loaded.wait(30)
        return ToyFlamingo()

    monkeypatch.setattr("triptych.tasks.load", load)
    app = create_app(settings(models=("sat", "flamingo")), {"sat": ToySat()})
    with running_app(app) as address, chromium() as driver:
        driver.get(address)
        wait(driver, lambda d: "loading" in find(d, "#status").text)
        upload(driver, "caption", tmp_path / "a.png", 200)
        find(driver, "#caption-run").click()
        wait(driver, lambda d: "A red of 200." in "".join(texts(d, "#caption-results .card")))
        upload(driver, "ask", tmp_path / "a.png", 7)
        find(driver, "#ask-run").click()
        wait(driver, lambda d: "loading" in find(d, "#status").text)
        loaded.set()
        wait(driver, is_ready)
        find(driver, "#ask-run").click()
        wait(driver, lambda d: texts(d, "#ask-results .card"))


def test_search_shows_matches_or_the_closest_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's answers are given; the page chooses among them."""

    chances: list[float] = []

    def found(*_: object, **__: object) -> list[Any]:
        return [
            SimpleNamespace(path=f"{n}.png", rank=n, score=1.0, probability=chance) for n, chance in enumerate(chances)
        ]

    monkeypatch.setattr("triptych.library.SearchedLibrary.open", lambda library: library)
    monkeypatch.setattr("triptych.library.as_matcher", lambda model, name: model)
    monkeypatch.setattr("triptych.library.find", found)
    monkeypatch.setattr("triptych.io.images.load_image", lambda path: Image.new("RGB", (8, 8)))
    with running({"blip2": ToyBlip2()}, library=tmp_path) as address, chromium() as driver:
        driver.get(address)
        wait(driver, is_ready)
        for probabilities, names, note in (
            ((0.8, 0.4, 0.1), ["0. 0.png", "1. 1.png"], ""),
            ((0.2, 0.1, 0.1, 0.0), ["0. 0.png", "1. 1.png", "2. 2.png"], "No photo matches clearly"),
        ):
            chances[:] = probabilities
            driver.execute_script("document.querySelector('#find-form input').value = 'a dog'")
            driver.execute_script("document.querySelector('#find-results').replaceChildren()")
            driver.execute_script("document.querySelector('#find-form button').click()")
            wait(driver, lambda d: texts(d, "#find-results h3"))
            assert texts(driver, "#find-results h3") == names
            assert (note in find(driver, "#find-note").text) if note else not find(driver, "#find-note").text


def test_a_text_file_is_no_picture(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    find(page, "[data-picker=caption] input[type=file]").send_keys(str(tmp_path / "notes.jpg"))
    wait(page, lambda d: "not a picture" in find(d, "#status").text)


CUT = """
return [...document.querySelectorAll('button, label, h1, h2, h3, p, th, nav a, .card, .drop')]
  .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
  .map(e => e.textContent)
"""


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_cut_off_or_blocked(page: Any, tmp_path: Path, width: int, scheme: str, language: str) -> None:
    """The whole page with the answers of the tests before; a picture of it is kept in ``TRIPTYCH_SCREENSHOTS``, if that is a folder."""
    if page.execute_script("return document.documentElement.lang") != language:
        page.execute_script("document.getElementById('language').click()")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    wide, room = page.execute_script("const d = document.documentElement; return [d.scrollWidth, d.clientWidth]")
    assert page.execute_script("return innerWidth") == width and wide <= room
    assert page.execute_script(CUT) == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    picture = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    folder = Path(os.environ.get("TRIPTYCH_SCREENSHOTS", tmp_path))
    (folder / f"page-{width}-{scheme}-{language}.png").write_bytes(base64.b64decode(picture))


def test_errors_are_explained_in_the_language_of_the_page(tmp_path: Path) -> None:
    def captions(driver: Any, message: str) -> None:
        find(driver, "#caption-run").click()
        wait(driver, lambda d: message in find(d, "#status").text)

    with chromium() as driver:
        with running({"sat": ToySat()}) as address:
            driver.get(address)
            wait(driver, is_ready)
            upload(driver, "caption", tmp_path / "a.png", ToySat.FAULTY)
            captions(driver, "this picture is faulty")
            find(driver, "#language").click()
            captions(driver, "서버가 이 요청을 처리할 수 없습니다. (this picture is faulty)")
        captions(driver, "서버가 응답하지 않습니다.")
        find(driver, "#language").click()
        captions(driver, "The server does not answer: is it still running?")
