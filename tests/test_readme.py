"""What the README promises: its commands exist with these options, and its links lead somewhere."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SACRED = ["pip install . && alexnet train digits", "pip install -e '.[dev]' && pytest"]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|<(?:img|a)[^>]+(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def read(page):
    return page.read_text(encoding="utf-8") if page.exists() else ""


def commands(text):
    """The ``alexnet …`` commands of all sh blocks, as lists of words."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language == "sh"]
    lines = [part.strip() for body in blocks for line in body.splitlines() for part in re.split(r"&&|\|\||[|;]", line)]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("alexnet ")]


def links(text):
    """Relative targets of all links and images of a page, without their #anchors."""
    found = ["".join(match) for match in LINK.findall(FENCE.sub("", text))]
    relative = [link for link in found if not re.match(r"[a-z]+:|#|//", link)]
    return [link.partition("#")[0] for link in relative]


@functools.cache
def program_help(*command):
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "alexnet", *command, "--help"]
    return subprocess.run(call, capture_output=True, text=True, env=environment, check=False, timeout=600)


def test_there_is_a_readme_with_commands():
    assert commands(read(ROOT / "README.md")), "README.md: no alexnet command in a block marked sh"


@pytest.mark.parametrize("sacred", SACRED)
def test_the_two_commands_stand_near_the_top(sacred):
    assert sacred in read(ROOT / "README.md").splitlines()[:60], f"README.md: {sacred!r} must be a line of its first 60"


@pytest.mark.parametrize("command", commands(read(ROOT / "README.md")), ids=" ".join)
def test_a_command_has_an_existing_verb_and_existing_options(command):
    name = [] if command[1].startswith("-") else command[1 : 3 if command[1] == "study" else 2]
    answer = program_help(*name)
    assert answer.returncode == 0, f"alexnet {' '.join(name)} --help: {answer.stderr or answer.stdout}"
    for option in (word.partition("=")[0] for word in command[1:] if re.match(r"--?[a-zA-Z]", word)):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", answer.stdout), f"no {option} in {command[1]}"


def test_each_figure_is_on_a_page():
    text = "".join(map(read, PAGES))
    assert [path.name for path in (ROOT / "docs" / "images").iterdir() if f"images/{path.name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    assert page.exists()
    generated = page.parent / "reference" / "commands.md"  # by .ci/docs_hooks.py, when the site is built
    missing = [
        link for link in links(read(page)) if not (page.parent / link).exists() and page.parent / link != generated
    ]
    assert not missing, f"{page.name}: nothing at {missing}"


def test_what_is_collected():
    """The collectors see what is there: a test over nothing would pass too."""
    text = """[a](docs/a.md#part) ![b](<b.png>) [c](https://c) [d](#d) <img width="9" src="e.png">
```sh
pip install . && alexnet train digits   # a minute
alexnet predict RUN "my cat.png" \\
    --top 5 | head
```
```python
[0](nowhere)
```
[f]: f.md
"""
    assert links(text) == ["docs/a.md", "b.png", "e.png", "f.md"]
    assert commands(text) == [
        ["alexnet", "train", "digits"],
        ["alexnet", "predict", "RUN", "my cat.png", "--top", "5"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_lead_to_one(page):
    """As GitHub makes anchors: lower case, without punctuation, a hyphen for each space."""
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", FENCE.sub("", read(page))):
        headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page.parent / target if target else page)), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def test_the_documented_bundle_versions_are_those_of_the_code():
    from alexnet.bundle.integrity import COMPRESSED, VERSION

    documented = re.search(
        r"`alexnet-bundle`, version (\d+) \((\d+) where weights are compressed\)", read(ROOT / "docs/using.md")
    )
    assert documented
    assert tuple(map(int, documented.groups())) == (VERSION, COMPRESSED)
