"""Pages of the documentation site that are made from the program: the commands, the changes, how to contribute.

mkdocs calls the functions ``on_*``; see mkdocs.yml.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BOOST = {"training.md": 4, "explaining.md": 2, "changelog.md": 0.2, "log.md": 0.5}
COPIES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    for source, target in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for name, copy in COPIES.items():
            text = text.replace(f"]({name}", f"]({copy}")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files above docs/ lead to their copies. The search has the pages of ``BOOST`` higher or lower."""
    if page.file.src_uri in BOOST:
        page.meta["search"] = {"boost": BOOST[page.file.src_uri]}
    for source, target in COPIES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)(?:README\.md|LICENSE|tests/|src/)[^)]*\)", r"\1", markdown)


def commands() -> str:
    """The page of all commands: the help text of each, which tyro makes from the definitions of the options."""
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    from alexnet import cli

    parts = [
        "# Commands\n",
        "Exit status: 0 success, 1 failure, 2 wrong use, 130 or 143 interrupted. Results go to standard",
        "output, messages to standard error.\n",
    ]
    group = ""
    for name, command in cli.COMMANDS.items():
        if command.group != group:
            group = command.group
            parts.append(f"\n## {group}\n")
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.run([*name.split(), "--help"])
        assert "usage" in text.getvalue().lower(), f"alexnet {name} --help printed no usage"
        parts += [f"### alexnet {name}\n", f"{command.summary[0].upper()}{command.summary[1:]}.\n"]
        parts += ["```text", re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).strip("\n"), "```\n"]
    return "\n".join(parts)
