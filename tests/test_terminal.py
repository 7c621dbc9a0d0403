"""What is printed: nothing that a terminal obeys, nothing that its encoding lacks, no formula in a CSV."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet import cli
from alexnet import terminal as terminals
from alexnet.cli import networks, output, predict
from alexnet.errors import AlexNetError, RecipeError, printable
from alexnet.terminal import csv_cell, format_duration, parse_duration, parse_size, safe_output, styled_output

COMMANDS = [*cli.COMMANDS]
HOSTILE = "a\x1b[31mb\x07c\x9b2Jd\u202ee\u2066f\rg\x7f\udcff"
ESCAPED = r"a\x1b[31mb\x07c\x9b2Jd\u202ee\u2066f\x0dg\x7f\udcff"


def terminal(encoding: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    data = io.BytesIO()
    return data, io.TextIOWrapper(data, encoding, newline="\n")


@pytest.fixture(params=["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def printed(request, monkeypatch):
    """Run something with output in one encoding; returns both outputs."""

    def run(words):
        (out, stdout), (err, stderr) = terminal(request.param), terminal(request.param)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            try:
                status = words() if callable(words) else cli.run(words)
            except SystemExit as leaving:
                status = leaving.code
            stdout.flush()
            stderr.flush()
        return status, out.getvalue().decode(request.param), err.getvalue().decode(request.param)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_in_every_encoding(command, printed):
    status, out, err = printed([*command.split(), "--help"])
    assert status == 0 and command in out and not err and "Traceback" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_of_every_command_in_every_encoding(command, printed):
    status, out, err = printed([*command.split(), "--there-is-no-such-option…×\x1b]0;title\x07"])
    assert status == 2 and "\x1b" not in out + err and "\x07" not in out + err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["models"],
        ["models", "alexnet"],
        ["recipes"],
        ["recipes", "digits"],
        ["recipes", "alexnet", "modern"],
        ["no such command ·×→\x1b[2J"],
        ["predict", "nö\x1b[2Jrun", "no…"],
    ],
)
def test_tables_texts_and_errors_in_every_encoding(words, printed):
    status, out, err = printed(words)
    assert status in (0, 1, 2) and out + err and "\x1b" not in out + err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ["models", "alexnet"]),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, ["train", "--help"]),
    ],
)
def test_in_a_process_of_its_own(settings, words):
    done = subprocess.run(
        [sys.executable, "-m", "alexnet", *words],
        env=os.environ | settings,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.isascii() and not done.stderr


def test_what_ascii_lacks_is_readable(printed):
    def words():
        with safe_output():
            print("8 × 8 … ±0.5 → é")

    _, out, _ = printed(words)
    plain = out.replace("×", "x").replace("…", "...").replace("±", "+-").replace("→", "->").replace(r"\xe9", "é")
    assert plain == "8 x 8 ... +-0.5 -> é\n"


def test_nothing_is_obeyed(printed):
    def words():
        with safe_output():
            print(f"one {HOSTILE}\ttwo")
            output.log(HOSTILE)
            output.table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, "1\n2"]])

    _, out, err = printed(words)
    assert out.startswith(f"one {ESCAPED}\ttwo\n") and err == ESCAPED + "\n"
    assert out.count(ESCAPED) == 4 and r"1\x0a2" in out and not any(c in out for c in "\x1b\x07\x9b\r\u202e")


def test_an_error_is_one_line_on_the_terminal(printed, monkeypatch):
    def fail(words):
        raise AlexNetError(f"class {HOSTILE!s}\nalexnet: all is well")

    monkeypatch.setattr(networks, "models_command", fail)
    status, out, err = printed(["models"])
    assert (status, out, err) == (1, "", f"alexnet: class {ESCAPED}\\x0aalexnet: all is well\n")


def test_libraries_style_their_own_text_and_streams_come_back():
    before, (out, stdout) = sys.stdout, terminal("ascii")
    sys.stdout = stdout
    try:
        with safe_output():
            with styled_output():
                print("\x1b[1mbold\x1b[0m …")
            print("\rbar \x1b[1m")
        assert sys.stdout is stdout and stdout.errors == "strict"
    finally:
        sys.stdout = before
    stdout.flush()
    assert out.getvalue() == b"\x1b[1mbold\x1b[0m ...\n\rbar \\x1b[1m\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_are_no_formulas(start, printed):
    name, label = start + "cmd|' /C calc'!A0", start + "1+1"
    predictions = [
        {"filename": name, "top_k": [{"label": label, "score": 0.5}]},
        {"filename": name, "error": name},
        {"filename": 'a,"b"\n=1', "top_k": [{"label": "x=y", "score": 0.5}]},
    ]
    _, out, _ = printed(lambda: predict.FORMATS["csv"](predictions, 1, None, ()))
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[1] == ["'" + printable(name), "1", "'" + printable(label), "0.500000", ""]
    assert rows[2][0] == rows[2][4] == "'" + printable(name)
    assert rows[3] == ['a,"b"\\x0a=1', "1", "x=y", "0.500000", ""]
    assert csv_cell("plain, as it is") == "plain, as it is"
    for sign in "=+-@＝＋－＠\t\r\n":
        assert csv_cell(f"{sign}1+1")[0] == csv_cell(f"''{sign}1+1")[0] == "'"


def test_json_stays_json_in_every_encoding(printed):
    predictions = [{"filename": HOSTILE + "é×\U000e0001", "top_k": [{"label": "ü", "score": 0.5}]}]

    def words():
        with safe_output():
            predict.FORMATS["json"](predictions, 1, None, ())

    assert json.loads(printed(words)[1]) == predictions


def test_other_spaces_are_kept_and_short_escapes_tell_the_character():
    assert printable("a\u00a0b\u3000c é ü 猫") == "a\u00a0b\u3000c é ü 猫"
    assert printable("\u2028\U000e0041\n") == r"\u2028\U000e0041\x0a"


def test_a_class_name_of_10000_characters_makes_no_row_of_as_many(printed):
    def words():
        with safe_output():
            output.table("", ["class"], [["x" * 10_000], ["short"]])

    _, out, _ = printed(words)
    assert "x" * 199 in out and max(map(len, out.splitlines())) < 300


def test_shortening_a_long_name_looks_at_few_characters(monkeypatch):
    looked_at = []
    monkeypatch.setattr(terminals, "columns", lambda text: looked_at.append(len(text)) or len(text))
    assert terminals.shorten("x" * 100_000, 60) == "x" * 59 + "…"
    assert sum(looked_at) < 200_000  # cut letter by letter from the end it would be 5,000,000,000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("40min", 2400),
        ("40m", 2400),
        ("1h5m", 3900),
        ("90s", 90),
        ("1.5h", 5400),
        ("1h30min", 5400),
        ("2h 5min 10s", 7510),
        ("0.5min", 30),
    ],
)
def test_durations_are_parsed(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["40", "", "min", "40 minutes", "40mm", "40ms", "-5min", "1d", "40min!", "nan"])
def test_other_texts_are_refused(text):
    with pytest.raises(RecipeError) as caught:
        parse_duration(text)
    assert str(caught.value) == f"--budget is {text!r}; must be a time such as 90s, 40min or 1.5h"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.34, "8.34 s"), (59.9, "59.9 s"), (60, "1 min"), (125, "2 min 5 s"), (5400, "1 h 30 min"), (119.7, "2 min")],
)
def test_durations_are_formatted(seconds, text):
    assert format_duration(seconds) == text


def test_sizes_as_people_write_them():
    for text, value in (("7MB", 7_000_000), ("6.5 MiB", 6_815_744), ("800kb", 800_000), ("12", 12), ("1g", 10**9)):
        assert parse_size(text, "--target-size") == value
    for text in ("", "MB", "7 apples", "-1MB", "1e6"):
        with pytest.raises(RecipeError, match="--target-size is"):
            parse_size(text, "--target-size")


def test_each_writer_of_csv_escapes_its_text():
    """results.csv alone is written without a csv.writer: it has numbers only."""
    source = Path(terminals.__file__).parent
    writers = {path for path in source.rglob("*.py") if re.search(r"csv\.(Dict)?[wW]riter\(", path.read_text("utf-8"))}
    escaping = {path for path in writers if re.search(r"csv_cell\(|csv_rows\(", path.read_text("utf-8"))}
    assert len(writers) >= 6 and writers == escaping
