"""The metadata of the package, and the files of the repository that name its parts."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation and f"\nlicense: {PROJECT['license']}\n" in citation


def test_every_tested_python_is_a_classifier():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", text)[1])
    declared = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert tested == declared and PROJECT["requires-python"] == f">={tested[0]}"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_extras_scripts_and_tests_that_exist(workflow):
    text = workflow.read_text(encoding="utf-8")
    extras = {name for names in re.findall(r"\.\[([\w,]+)\]", text) for name in names.split(",")}
    assert extras and extras <= set(PROJECT["optional-dependencies"])
    paths = re.findall(r"(?:^|\s)(tests/[\w/]+\.py|\.ci/\w+)", text)
    assert paths and all((ROOT / path).is_file() for path in paths)
    assert "permissions:\n  contents: read\n" in text
