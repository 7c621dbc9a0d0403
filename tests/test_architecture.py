"""The pages that lead through the source name files and symbols that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src/alexnet"
WORDS = re.findall(r"^\| ([^|]+) \| `([\w/]+\.py)` \| `(\w+)` \|$", PAGE.partition("## Usual words")[2], re.MULTILINE)


def test_the_table_of_words_is_read():
    assert len(WORDS) >= 30


@pytest.mark.parametrize(("word", "file", "symbol"), WORDS, ids=lambda value: value)
def test_a_usual_word_leads_to_its_symbol(word, file, symbol):
    text = (SOURCE / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(def|class|async def) {symbol}\b|^\s*(self\.)?{symbol}\b[^=\n]*=", text, re.MULTILINE), word


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", PAGE))))
def test_a_file_of_the_page_exists(path):
    assert (SOURCE / path).exists() or (ROOT / path).exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    names = set(re.findall(r"`((?:[\w]+/)+\w+\.(?:py|c|h)|tests/[\w/]+)`", page.read_text(encoding="utf-8")))
    missing = [name for name in sorted(names) if not ((SOURCE / name).exists() or (ROOT / name).exists())]
    assert not missing, f"{page.name}: no such files {missing}"
