"""Pictures of a request: data URLs and bare base64; by address only from the domains and folders that the server allows.

They are decoded in threads, and fetched in others, so that slow addresses hold up no request without any.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
import stat
from concurrent.futures import Executor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastapi import Request
from PIL.Image import Image

from triptych.errors import InputError
from triptych.io.images import decoding_bytes, load_image
from triptych.serve.deadline import deadline_of
from triptych.serve.errors import ApiError
from triptych.serve.fetch import PICTURE_BYTES, fetch_allowed
from triptych.serve.memory import SCOPE_KEY, RequestMemory
from triptych.serve.settings import PICTURE_LIMIT, ServerSettings

ALPHABET = str.maketrans("-_", "+/")
SPACE = re.compile(r"\s+")


class RequestPictures:
    """Reads the pictures of one request, ``most`` at most."""

    def __init__(self, request: Request, most: int = PICTURE_LIMIT) -> None:
        self.settings: ServerSettings = request.app.state.settings
        self.fetchers: Executor = request.app.state.fetchers
        self.deadline = deadline_of(request)
        self.memory: RequestMemory = request.scope[SCOPE_KEY]
        self.left = self.most = most
        self._digest = hashlib.sha256()

    async def read(self, address: str, param: str) -> Image:
        """The picture at ``address``, upright and RGB.

        Raises:
            ApiError: 400, names ``param``: it is not a picture, is too large, one too many, or its address is not allowed;
                413 or 503, there is no memory for it; 504, the time of the request is up.
        """
        if not self.left:
            raise ApiError(400, f"{param}: a request may have {self.most} pictures at most", param=param)
        self.left -= 1
        is_remote = address.lstrip()[:4].lower() == "http"
        loop = asyncio.get_running_loop()
        try:
            async with self.deadline.limit():
                data = await loop.run_in_executor(
                    self.fetchers if is_remote else None, picture_bytes, address, self.settings
                )
                return await asyncio.to_thread(self._decode, data)
        except InputError as error:
            raise ApiError(400, f"{param}: {without_name(str(error))}", param=param) from None

    def _decode(self, data: bytes) -> Image:
        self._digest.update(len(data).to_bytes(8) + data)
        return self.memory.load(*decoding_bytes(data), lambda: load_image(data))

    def digest(self) -> bytes:
        """Of the files of all pictures that were read, in order."""
        return self._digest.digest()


def picture_bytes(address: str, settings: ServerSettings) -> bytes:
    """The bytes of the picture at ``address``. Raises InputError: another kind of address, or one that is not allowed."""
    address = address.strip()
    if address[:5].lower() == "data:":
        return data_url_bytes(address)
    try:
        parts = urlsplit(address if ":" in address[:12] else "")
    except ValueError:  # such as http://[
        parts = urlsplit("")
    if parts.scheme in ("http", "https") and settings.allow_domains:
        return fetch_allowed(address, settings.allow_domains)
    if parts.scheme == "file" and settings.allow_folders:
        return folder_bytes(unquote(parts.path), settings.allow_folders)
    raise InputError(
        "pictures come as data URLs (data:image/jpeg;base64,...); addresses are switched off on this server"
    )


def data_url_bytes(url: str) -> bytes:
    """The bytes of ``data:ANYTHING;base64,TEXT``; the MIME type is ignored.

    Raises InputError: there is no comma, it is not base64, or it is empty.
    """
    head, comma, text = url.partition(",")
    if not comma:
        raise InputError("the data URL has no comma between its head and its data")
    if not head.lower().rstrip().endswith(";base64"):
        raise InputError("the data URL is not base64: its head must end with ;base64")
    return base64_bytes(unquote(text) if "%" in text else text)


def base64_bytes(text: str) -> bytes:
    """Base64 with or without white space and padding, in the common or the URL-safe alphabet. Raises InputError."""
    if len(text) > 2 * PICTURE_BYTES:
        raise InputError(f"the picture is larger than {PICTURE_BYTES >> 20} MB")
    text = SPACE.sub("", text).translate(ALPHABET).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not valid base64") from None
    if not data:
        raise InputError("the picture is empty (0 bytes)")
    return data


def folder_bytes(name: str, folders: tuple[Path, ...]) -> bytes:
    """A regular file below one of ``folders``. The opened file is checked, not its name. Raises InputError: it is outside of them."""
    refused = InputError("this file is outside of the folders that the server may read, or is no regular file")
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):  # ValueError: no name of a file can have these characters
        raise refused from None
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode):
        os.close(descriptor)
        raise refused
    with os.fdopen(descriptor, "rb") as file:
        link = f"/proc/self/fd/{descriptor}"
        real = Path(os.path.realpath(link if Path(link).exists() else name))
        if not any(real.is_relative_to(Path(os.path.realpath(folder))) for folder in folders):
            raise refused
        if opened.st_size > PICTURE_BYTES:
            raise InputError(f"the picture is larger than {PICTURE_BYTES >> 20} MB")
        return file.read(PICTURE_BYTES)


def without_name(message: str) -> str:
    """An image error without the name that ``load_image`` uses for bytes."""
    return re.sub(r"^(<[^>]*>|the picture|bytes)[:,]?\s*", "", message)
