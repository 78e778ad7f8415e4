"""The files that run the server as a service: a container, a compose file, a systemd unit. They are not run here; each line is checked."""

import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in order, with their arguments."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_container_has_what_it_copies_and_installs() -> None:
    given = dict(instructions())
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name, rest in instructions():
        if name == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists() and f"!{source}" in ignored, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    version = re.search(r"python:(\d+)\.(\d+)", given["FROM"])
    least = re.search(r">=(\d+)\.(\d+)", project["requires-python"])
    assert version and least and version.groups() >= least.groups()


def test_the_container_runs_without_privileges_and_writes_to_its_cache_alone() -> None:
    names = [name for name, _ in instructions()]
    given = dict(instructions())
    assert names.index("USER") < names.index("ENTRYPOINT") and given["USER"] != "root"
    homes = dict(pair.split("=", 1) for pair in given["ENV"].split())
    assert homes["TRIPTYCH_HOME"] == given["VOLUME"] and homes["HF_HOME"].startswith(given["VOLUME"])
    assert "127.0.0.1:8000/healthz" in given["HEALTHCHECK"]


@pytest.mark.parametrize("command", [["serve", "--host", "0.0.0.0"], ["serve"]])
def test_its_command_is_one_of_ours(command: list[str]) -> None:
    assert '"triptych", "serve", "--host", "0.0.0.0"' in DOCKERFILE and "bin/triptych serve\n" in GUIDE
    ended = CliRunner().invoke(app, [*command, "--help"])
    assert ended.exit_code == 0 and "--host" in ended.stdout


def test_the_compose_file() -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["triptych"]
    assert service["build"] == "." and service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"]["TRIPTYCH_API_KEY"].startswith("${TRIPTYCH_API_KEY:?")  # it must be set
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (volume,) = service["volumes"]
    name, _, place = volume.partition(":")
    assert name in compose["volumes"] and f"VOLUME {place}\n" in DOCKERFILE and "/tmp" in service["tmpfs"]


def test_the_systemd_unit(tmp_path: Path) -> None:
    found = re.search(r"```ini\n(\[Unit\].*?)```", GUIDE, re.S)
    assert found
    unit = ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(found[1])
    service = unit["Service"]
    cache = f"/var/cache/{service['CacheDirectory']}"
    homes = dict(pair.split("=", 1) for pair in service["Environment"].split())
    assert homes["TRIPTYCH_HOME"] == cache and homes["HF_HOME"].startswith(cache)
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert int(service["TimeoutStopSec"]) > 60  # running requests are finished first
    if shutil.which("systemd-analyze"):
        command = found[1].replace("/opt/triptych/.venv/bin/triptych", sys.executable)
        (tmp_path / "triptych.service").write_text(command, encoding="utf-8")
        check = ["systemd-analyze", "verify", str(tmp_path / "triptych.service")]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        assert not [line for line in done.stderr.splitlines() if "triptych.service" in line], done.stderr
