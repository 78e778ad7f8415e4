"""Reading the bytes of a picture from a file, a file: URL, a data: URL or an http(s): address."""

import base64
import binascii
import http.client
import os
import re
import stat
import string
import time
import urllib.error
import urllib.request
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes, urlsplit, urlunsplit

from triptych.errors import InputError
from triptych.io import limits
from triptych.io.limits import check_bytes, printable


def read_source(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The bytes at a path or URL, and its name for messages (an address without query, user name and password).

    A `Path` is never treated as a URL. Raises InputError: it cannot be read or is larger than `limits.MAX_BYTES`.
    """
    location = os.fsdecode(source)
    name = printable(location)
    scheme = location.partition(":")[0].lower() if isinstance(source, str) else ""
    if scheme == "data":
        data, name = _read_data_url(location), "data URL"
    elif scheme in ("http", "https"):
        name = printable(re.sub(r"[?#].*|(?<=//)[^/?#]*@", "", location, flags=re.DOTALL))
        data = _download(location, name)
    elif scheme == "file":
        data = _read_file(_path_of_url(location, name), name)
    elif scheme and "://" in location:
        raise InputError(f"{name}: only file:, http:, https: and data: URLs can be read")
    else:
        data = _read_file(location, name)
    check_bytes(data, name)
    return data, name


def open_regular_file(location: str, name: str) -> BinaryIO:
    """The file at a path, open for reading. Raises InputError: it cannot be read, or is a folder, a pipe or a device."""
    try:
        kind = os.stat(location).st_mode  # noqa: PTH116
        if stat.S_ISDIR(kind):
            raise InputError(f"{name}: is a folder, not a picture")
        if not stat.S_ISREG(kind):
            raise InputError(f"{name}: is a pipe or a device, not a file")
        return open(location, "rb")  # noqa: PTH123
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read this file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{name}: is no valid path") from None


def _read_file(location: str, name: str) -> bytes:
    with open_regular_file(location, name) as file:
        try:
            return file.read(limits.MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from None


def _path_of_url(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{name}: a file: URL must name this machine (file:///folder/photo.jpg)")
        return urllib.request.url2pathname(parts.path)
    except InputError:
        raise
    except (ValueError, OSError):
        raise InputError(f"{name}: is no valid file: URL") from None


def _read_data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise InputError("data URL: has no comma between its header and its data")
    try:
        data = unquote_to_bytes(body)
        if header.lower().endswith(";base64"):
            data = b"".join(data.split()).rstrip(b"=")
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, UnicodeError):
        raise InputError("data URL: its data is not valid base64") from None
    return data


def _download(url: str, name: str) -> bytes:
    try:
        request = urllib.request.Request(
            _ascii_address(url, name), headers={"User-Agent": "triptych", "Accept": "image/*"}
        )
        with _opener().open(request, timeout=limits.URL_TIMEOUT) as response:
            return _read_response(response, name)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise InputError(f"{name}: the server answered {error.code} ({printable(str(error.reason))})") from None
    except TimeoutError:
        raise InputError(f"{name}: no answer within {limits.URL_TIMEOUT:.0f} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise InputError(f"{name}: no answer within {limits.URL_TIMEOUT:.0f} s") from None
        reason = getattr(error.reason, "strerror", None) or str(error.reason)
        raise InputError(f"{name}: cannot be fetched: {printable(reason)}; check the address and the network") from None
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{name}: the connection failed: {printable(str(error) or type(error).__name__)}") from None
    except ValueError:
        raise InputError(f"{name}: is no valid address") from None


def _opener() -> urllib.request.OpenerDirector:
    """Unlike `urlopen`, without file: and ftp:, which a redirect could name."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _ascii_address(url: str, name: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InputError(f"{name}: a user name or password in an address cannot be used; download the file first")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, parts.netloc.encode("idna").decode("ascii"), path, query, ""))


def _read_response(response: http.client.HTTPResponse, name: str) -> bytes:
    deadline = time.monotonic() + limits.URL_TIMEOUT
    data = bytearray()
    while chunk := response.read1(2**18):
        data += chunk
        check_bytes(data, name)
        if time.monotonic() > deadline:
            raise InputError(f"{name}: did not arrive within {limits.URL_TIMEOUT:.0f} s")
    return bytes(data)
