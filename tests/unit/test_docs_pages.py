"""The documentation: links lead somewhere, generated pages are up to date, the site builds without a warning."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
README_LINES = 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    assert not re.search(r"\b(FIGURES|EXAMPLE|TRANSFER|WHERE|TODO|TBD)\b", text)


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_page_of_the_command_line_is_what_help_prints() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))
    assert generate["PAGE"].read_text(encoding="utf-8") == generate["page"](), "run: python docs/generate_cli.py"


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("material", "mkdocstrings"))), reason="needs the extra docs: mkdocs-material"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "triptych.systems.show_attend_tell.CaptionDecoder.start" in (tmp_path / "api/systems/index.html").read_text(
        "utf-8"
    )
