"""What pictures may do to the server, beside tests/unit/test_images_hostile.py. Numbers are those of docs/security.md."""

import base64
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin
from serving import CHAT, client_of, running
from test_find import RedBlip2
from toy_models import png, question

from triptych.errors import InputError
from triptych.serve import pictures
from triptych.serve.native import found_fields
from triptych.serve.pictures import base64_bytes


def as_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(kind: bytes, data: bytes) -> bytes:
    """A small PNG with a chunk behind its header."""
    whole = png()
    return whole[:33] + chunk(kind, data) + whole[33:]


def gif_of_many_frames() -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\x02\x02L\x01\0"
    return head + 10_000 * frame + b";"


def webp_of_many_frames() -> bytes:
    frames = [Image.new("RGB", (4, 4), (200 * n, 0, 0)) for n in range(2)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    first = data.index(b"ANMF")
    size = 8 + struct.unpack_from("<I", data, first + 4)[0]
    frame = data[first : first + size]
    body = data[8:first] + 10_000 * frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_many_scans() -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + 65_535 * data[last:-2] + data[-2:]


def bombs() -> Iterator[tuple[str, Callable[[], bytes]]]:
    zeros = zlib.compress(bytes(64 << 20), 1)
    yield "text", lambda: png_with(b"zTXt", b"Comment\0\0" + zeros)
    yield "ICC profile", lambda: png_with(b"iCCP", b"icc\0\0" + zeros)
    yield "GIF", gif_of_many_frames
    yield "WebP", webp_of_many_frames
    yield "JPEG", jpeg_of_many_scans


def memory(kind: str) -> int:
    """Megabytes of this process: ``VmRSS`` = now, ``VmHWM`` = the most since the peak was reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{kind}:")[2].split()[0]) >> 10


@pytest.mark.parametrize("make", [make for _, make in bombs()], ids=[name for name, _ in bombs()])
def test_11_bombs_cost_little(client: TestClient, make: Callable[[], bytes]) -> None:
    """A second of the processor, and 200 MB beside the request itself, which the client makes here."""
    body = question(as_url(make()))
    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = memory("VmRSS")
    started = time.process_time()
    assert client.post(CHAT, json=body).status_code in (200, 400)
    assert time.process_time() - started < 1
    if linux:
        assert memory("VmHWM") - before < 200 + 6 * len(str(body)) / 2**20


def test_10_too_many_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 30)
    assert len(base64_bytes("A" * 60)) == 45
    with pytest.raises(InputError, match="larger"):
        base64_bytes("A" * 64)


def test_12_the_bytes_decide_and_what_follows_them_is_ignored(client: TestClient) -> None:
    both = png(9) + b"<script>alert(1)</script>%PDF-1.7"
    for address in (as_url(both), as_url(both).replace("image/png", "application/pdf")):
        assert client.post(CHAT, json=question(address)).json()["choices"][0]["message"]["content"] == "What? [9]"
    pdf = b"%PDF-1.7\n" + png(9)
    assert client.post(CHAT, json=question(as_url(pdf))).status_code == 400


NASTY = "<script>alert(1)</script>\x1b[31m\u202egnp\r\nSet-Cookie: a=b"


def test_15_metadata_is_not_repeated(client: TestClient) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Comment", NASTY)
    info.add_itxt("Title", NASTY)
    photo = as_url(encoded(Image.new("RGB", (8, 8)), "PNG", pnginfo=info))
    damaged = as_url(encoded(Image.new("RGB", (8, 8)), "PNG", pnginfo=info)[:300])
    for path, body in (
        (CHAT, question(photo)),
        (CHAT, question(damaged)),
        ("/v1/explain", {"image": photo}),
        ("/v1/caption", {"image": photo, "explain": True}),
    ):
        response = client.post(path, json=body)
        for text in ("alert(1)", "\x1b", "\u202e", "Set-Cookie"):
            assert text not in response.text and text.lower() not in str(response.headers).lower()


def test_15_a_model_name_is_not_markup(client: TestClient) -> None:
    response = client.post(CHAT, json=question(as_url(png()), model=NASTY))
    assert response.status_code == 404 and response.headers["content-type"] == "application/json"
    assert "\x1b" not in response.text and "\n" not in response.json()["error"]["message"]


def test_16_pictures_that_come_back_carry_no_position(client: TestClient, tmp_path: object) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    data = encoded(Image.new("RGB", (640, 480), (9, 9, 9)), "JPEG", exif=exif)
    assert b"Exif" in data
    figure = client.post("/v1/explain", json={"image": as_url(data)}).json()["figure"]

    class Hit:
        rank, score, probability, path = 1, 0.5, 0.4, f"{tmp_path}/<b>photo.jpg"

    Path(Hit.path).write_bytes(data)
    thumbnail = found_fields(Hit)["thumbnail"]
    for url in (figure, thumbnail):
        returned = base64.b64decode(url.partition(",")[2])
        assert b"Exif" not in returned and not Image.open(BytesIO(returned)).getexif()


def wide_png(side: int) -> str:
    """A picture of ``side`` squared pixels in few bytes."""
    return as_url(encoded(Image.new("P", (side, side)), "PNG"))


def test_11_many_large_pictures_of_one_request_are_refused_before_they_are_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone is within the bounds, together they are not."""
    monkeypatch.setattr(client.app.state.memory, "most", 7_000_000)  # type: ignore[attr-defined]
    decoded: list[int] = []
    monkeypatch.setattr(pictures, "load_image", lambda data: decoded.append(len(data)) or Image.new("RGB", (4, 4)))
    response = client.post(CHAT, json=question(*[wide_png(500)] * 4))
    assert response.status_code == 413 and len(decoded) == 2
    assert client.post(CHAT, json=question(wide_png(500))).status_code == 200  # the memory was given back


def test_19_pictures_are_counted_before_they_are_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(pictures, "load_image", lambda data: decoded.append(1) or Image.new("RGB", (4, 4)))
    body = client.post(CHAT, json=question(*[as_url(png())] * 40)).json()
    assert "16 pictures at most" in body["error"]["message"] and len(decoded) == 16


def test_a_library_that_cannot_be_read_names_no_file(tmp_path: Path) -> None:
    with client_of({"blip2": RedBlip2()}, library=tmp_path) as client:
        response = client.post("/v1/find", json={"query": "a dog"})
    assert response.status_code == 503 and str(tmp_path) not in response.text


def test_slow_addresses_have_their_time_and_hold_up_no_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> bytes:
        arrived.release()
        go_on.wait(10)
        return png()

    monkeypatch.setattr(pictures, "fetch_allowed", slow)
    with running(allow_domains=("example.org",), timeout=1.5) as address:
        body = question("http://example.org/a.png")
        with ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(httpx.post, f"{address}{CHAT}", json=body, timeout=20) for _ in range(40)]
            assert arrived.acquire(timeout=5)
            assert httpx.post(f"{address}{CHAT}", json=question(as_url(png())), timeout=10).status_code == 200
            assert {answer.result().status_code for answer in waiting} == {504}
        go_on.set()
        assert httpx.post(f"{address}{CHAT}", json=body, timeout=5).status_code == 200


def test_other_requests_are_answered_while_pictures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading does not hold up the server's loop."""
    reading, go_on = threading.Event(), threading.Event()

    def slow(_: bytes) -> Image.Image:
        reading.set()
        go_on.wait(10)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(pictures, "load_image", slow)
    with client_of() as client:
        statuses: list[int] = []
        thread = threading.Thread(
            target=lambda: statuses.append(client.post(CHAT, json=question(as_url(png()))).status_code)
        )
        thread.start()
        reading.wait(10)
        assert client.get("/healthz").status_code == 200 and not statuses
        go_on.set()
        thread.join(10)
        assert statuses == [200]
