"""The documentation site: it builds without a warning, and its menu has every page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = {"reference/commands.md", "contributing.md", "changelog.md"}


def test_the_menu_has_every_page():
    menu = set(re.findall(r"^ +- .*: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert menu == pages | GENERATED


@pytest.mark.slow  # half a minute: it imports the whole package
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]
    commands = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--tracker-project" in commands and "alexnet study scaling" in commands
    reference = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "progressive_fraction" in reference and "on_epoch_end" in reference
    outside = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', reference + commands)
    assert not outside, "the site loads nothing from another host"
