"""docs/determinism.md: each line names a test that exists, and those said to be slow are the slow ones."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [
    line for line in (ROOT / "docs/determinism.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][2:]


def test_the_table_is_read():
    assert len(LINES) >= 20


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip())
def test_a_line_is_a_test(line):
    found = re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", line)
    assert found, "no test is named"
    tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
    tests = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert found[2] in tests
    marks = [ast.unparse(mark) for mark in tests[found[2]].decorator_list]
    assert ("(slow)" in line) == ("pytest.mark.slow" in marks)
