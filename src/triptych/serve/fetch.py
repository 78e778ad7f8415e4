"""Fetching pictures from allowed domains, without access to the server's own network.

A name is resolved once, all its addresses must be public, and the connection goes to the checked address. Each
redirect is checked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

from triptych.errors import InputError

PICTURE_BYTES = 32 << 20
HOPS = 3
SECONDS = 10.0
NOT_ALLOWED = "this address is not allowed on this server"


def fetch_allowed(url: str, domains: tuple[str, ...]) -> bytes:
    """The bytes at ``url``.

    Raises InputError: a domain that is not allowed, an address that is not public, too many redirects, too slow or too large.
    """
    deadline = time.monotonic() + SECONDS
    for _ in range(HOPS + 1):
        host, port, secure, target = parse(url, domains)
        status, location, body = request(host, port, secure, target, deadline)
        if status in (301, 302, 303, 307, 308) and location:
            url = redirected(url, location)
            continue
        if status != 200:
            raise InputError(f"the address answered with status {status}")
        return body
    raise InputError(f"the address leads through more than {HOPS} redirects")


def redirected(url: str, location: str) -> str:
    """The address that a redirect leads to. Raises InputError: it is none."""
    try:
        return urljoin(url, location)
    except ValueError:  # such as http://[
        raise InputError(NOT_ALLOWED) from None


def parse(url: str, domains: tuple[str, ...]) -> tuple[str, int, bool, str]:
    """Host, port, whether TLS, and the target. Raises InputError."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InputError(NOT_ALLOWED) from None
    if parts.scheme not in ("http", "https") or parts.username is not None or not host.isascii():
        raise InputError(NOT_ALLOWED)
    if not any(host == domain.lower() or host.endswith(f".{domain.lower()}") for domain in domains):
        raise InputError(NOT_ALLOWED)
    secure = parts.scheme == "https"
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    if any(character <= " " or character == "\x7f" for character in target):
        raise InputError(NOT_ALLOWED)
    return host, port or (443 if secure else 80), secure, target


def public_address(host: str, port: int) -> str:
    """The first address of ``host``. Raises InputError: it cannot be resolved, or not all its addresses are public."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # UnicodeError: a part of the name is empty or longer than names allow
        raise InputError("the name of the address cannot be resolved") from None
    if not all(map(is_public, addresses)):
        raise InputError(NOT_ALLOWED)
    return sorted(addresses)[0]


def is_public(text: str) -> bool:
    """Whether an IP address is one of the internet's. Those that stand for an IPv4 address behind a gateway (NAT64, 6to4) are not."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address.is_reserved or address.sixtofour is not None:
            return False
    return address.is_global and not address.is_multicast


def request(host: str, port: int, secure: bool, target: str, deadline: float) -> tuple[int, str | None, bytes]:
    """One GET to the checked address: status, location and body. Raises InputError: it failed, or is too slow or too large."""
    address, left = public_address(host, port), max(0.1, deadline - time.monotonic())
    try:
        raw = socket.create_connection((address, port), timeout=left)
        if secure:
            context = ssl.create_default_context()
            raw = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
        cut_off = threading.Timer(left, shut_down, (raw,))  # also ends a read of bytes that arrive very slowly
        cut_off.start()
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = 443 if secure else 80  # the Host header names only another one
        connection.sock = raw
        try:
            if isinstance(raw, ssl.SSLSocket):
                raw.do_handshake()
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "triptych"})
            response = connection.getresponse()
            body = bytearray()
            while response.status == 200 and (chunk := response.read(1 << 16)):
                body += chunk
                if len(body) > PICTURE_BYTES:
                    raise InputError(f"the picture is larger than {PICTURE_BYTES >> 20} MB")
            if time.monotonic() > deadline:
                raise OSError
            return response.status, response.getheader("location"), bytes(body)
        finally:
            cut_off.cancel()
            connection.close()
    except InputError:
        raise
    except (OSError, ValueError, http.client.HTTPException):
        late = time.monotonic() > deadline
        what = f"the picture did not arrive within {SECONDS:.0f} seconds" if late else "the address cannot be fetched"
        raise InputError(what) from None


def shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it may just have been closed
        connection.shutdown(socket.SHUT_RDWR)
