"""The settings of a server, and the limits of a request."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import InputError

PICTURE_LIMIT = 16  # of a request
MESSAGE_LIMIT = 64
TEXT_LIMIT = 16_384  # characters of a message
CHOICE_LIMIT = 32
TOKEN_LIMIT = 512  # of an answer
ANSWER_LIMIT = 8  # n
BEAM_LIMIT = 8
SEEDS = 1 << 31  # clients send any integer
PRINTABLE = re.compile(r"[!-~]([ -~]*[!-~])?")
HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
BATCH_LIMIT = 16  # requests that a model answers together
FETCH_LIMIT = 16  # pictures that are fetched from other servers at the same time
MEMORY_LIMIT = 2 << 30  # bytes of the bodies and decoded pictures of all requests in progress


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs.

    ``api_key``: clients must send it as ``Authorization: Bearer``; required if ``host`` is not a loopback address.
    ``allow_domains``, ``allow_folders``: sources of pictures that requests may name by address; none by default.
    ``hosts``: further host names of the server. ``queue``: waiting requests per model. ``timeout``: seconds per request.
    ``max_body``: bytes. ``library``: a library of photos for ``/v1/find``.
    """

    models: tuple[str, ...] = ("sat", "flamingo", "blip2")
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_domains: tuple[str, ...] = ()
    allow_folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    library: Path | None = None
    queue: int = 64
    timeout: float = 120.0
    max_body: int = 48 << 20

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_key:
            raise InputError(
                f"--host {self.host} lets other machines in: set a key with --api-key or TRIPTYCH_API_KEY, or keep 127.0.0.1"
            )
        if self.api_key is not None and len(self.api_key) < 16:
            raise InputError(f"the API key has {len(self.api_key)} characters: use at least 16")
        if self.api_key is not None and not PRINTABLE.fullmatch(self.api_key):
            raise InputError(
                "the API key has characters that no header can carry: use letters, digits and signs of ASCII"
            )
        for option, names in (("--host-name", self.hosts), ("--allow-domain", self.allow_domains)):
            for name in names:
                if not is_host(name):
                    raise InputError(f"{option} {name}: give the name alone, such as photos.example.org")
        for folder in self.allow_folders:
            if not folder.is_dir():
                raise InputError(f"--allow-folder {folder}: no such folder")
        if self.library is not None and not self.library.is_dir():
            raise InputError(f"--library {self.library}: no such library; triptych index makes one")
        if not self.models:
            raise InputError("no model to serve: name at least one with --model")


def is_host(name: str) -> bool:
    """Whether it is the name of a host, or an IP address, as in a URL, without scheme, port, path or wildcard."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return HOST.fullmatch(name) is not None
    return True


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
