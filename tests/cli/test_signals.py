"""The first signal interrupts a command, the second one ends it at once: whatever it waits for."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from data.object_server import served

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source

# A command that never ends: its main thread waits for a worker, or is inside a library that no signal interrupts.
HANGING = """
import ctypes, sys, threading, types
from concurrent.futures import ThreadPoolExecutor
from alexnet import cli

def worker(words):
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(threading.Event().wait)
        print("ready", flush=True)
        future.result()

def library(words):
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)

for run in (worker, library):
    cli.COMMANDS[run.__name__] = cli.Command("", "", run.__name__)
    sys.modules[f"alexnet.cli.{run.__name__}"] = types.SimpleNamespace(**{f"{run.__name__}_command": run})
cli.main()
"""


def send(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal, and wait until the process has received it: equal signals that wait are one."""
    process.send_signal(number)
    pending = True
    while pending and process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
        pending = any(mask >> (number - 1) & 1 for mask in masks)


def wait_until_it_hangs(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":  # its main thread sleeps
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["worker", "library"])
def test_a_second_signal_ends_a_command_at_once(where, number):
    words = [sys.executable, "-c", HANGING, where]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until_it_hangs(process)
        send(process, number)
        assert process.poll() is None
        send(process, number)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert err.startswith(("\nalexnet: stopped at once", "alexnet: interrupted")) and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_with_one_line(number):
    code = HANGING.replace("threading.Event().wait", "int").replace("future.result()", "threading.Event().wait()")
    words = [sys.executable, "-c", code, "worker"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until_it_hangs(process)
        send(process, number)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert err == "alexnet: interrupted; the same command goes on where it can\n"


PRINTING = """
import sys, types
from alexnet import cli
from alexnet.cli import output

def work(words):
    sys.stdin.readline()
    if words[0] == "table":
        output.table("", ("a",), [("b",)])
    else:
        print("x", file=getattr(sys, words[0]), flush=True)
    return 0

cli.COMMANDS["work"] = cli.Command("", "", "work")
sys.modules["alexnet.cli.work"] = types.SimpleNamespace(work_command=work)
cli.main()
"""


@pytest.mark.parametrize(("stream", "status"), [("stdout", 0), ("table", 0), ("stderr", 128 + signal.SIGPIPE)])
def test_a_reader_that_is_gone(stream, status):
    """``alexnet models | head -1`` is a success; ``alexnet train ... 2>&1 | tee log`` without tee has not trained."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING, "work", stream],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr and process.stdin
    (process.stderr if stream == "stderr" else process.stdout).close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(600) == status
    if stream != "stderr":
        assert process.stderr.read() == b""
        process.stderr.close()
    else:
        process.stdout.close()


def test_streams_that_are_closed(tmp_path):
    """``>&-``: nothing is printed, and no file gets the number of standard output."""
    code = PRINTING.replace("sys.stdin.readline()", f"file = open({str(tmp_path / 'file')!r}, 'w')")
    for closed, stream in (("<&- >&-", "stdout"), ("2>&-", "stderr"), (">&-", "table")):
        words = f'exec "$0" -c "$1" work {stream} {closed}'
        assert subprocess.run(["sh", "-c", words, sys.executable, code]).returncode == 0
        assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_was_removed(tmp_path):
    (tmp_path / "gone").mkdir()
    words = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$0" -m alexnet recipes', sys.executable]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "alexnet: the current folder does not exist any more; change to another one\n",
    )


def test_an_ignored_signal_stays_ignored():
    code = "import os, signal; from alexnet.cli import output; output.handle(); os.kill(os.getpid(), signal.SIGINT)"
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {code}; print('alive')"
    done = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_forked_child_does_not_count_for_its_parent():
    code = (
        "import os, signal\nfrom alexnet.cli import output\noutput.handle()\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\npid = os.fork()\n"
        "for _ in range(3): signal.raise_signal(signal.SIGINT) if not pid else None\n"
        "os._exit(0) if not pid else os.waitpid(pid, 0)\nprint('alive', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_training_that_waits_for_a_shard(tmp_path):
    """The server never sends the shard. The first signal asks for a checkpoint after a step that never comes."""
    prepare(open_source("digits"), tmp_path / "s" / "store", size=32, shard_bytes=100 * 32 * 32 * 3)
    asked, end = threading.Event(), threading.Event()
    with served(tmp_path / "s") as objects:
        fault = objects.fault

        def hang(name: str) -> str:
            if "images-" in name:
                asked.set()
                end.wait()
            return fault(name)

        objects.fault = hang
        words = ["train", objects.address + "/store", "--model", "lenet5", "--stored-size", "32", "--image-size", "32"]
        environment = os.environ | {"ALEXNET_CACHE": str(tmp_path / "cache")}
        with subprocess.Popen(
            [sys.executable, "-m", "alexnet", *words, "--output-dir", str(tmp_path / "run"), "--device", "cpu"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                while not asked.wait(1):
                    assert process.poll() is None, process.communicate()[1]
                assert process.stderr is not None
                send(process, signal.SIGINT)
                while "finishing the step" not in (line := process.stderr.readline()):
                    assert line, "it ended at the first signal"
                send(process, signal.SIGINT)
                assert process.wait(120) == 130
            finally:
                end.set()
                process.kill()
