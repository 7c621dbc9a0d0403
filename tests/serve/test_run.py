"""The command in processes of its own: readiness, drain, reload, several processes, what ends it."""

import asyncio
import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest
import torch

from alexnet import cli
from alexnet.bundle import restore_previous
from alexnet.errors import BundleError
from alexnet.export.verify import verify
from alexnet.serve.run import bind, signature

from .conftest import SECONDS, command, threaded


@pytest.fixture
def other(cifar, tmp_path):
    """A bundle with the same network and other weights."""
    import copy

    from alexnet.bundle import ReferenceSample
    from alexnet.export.classifier import Classifier

    network = copy.deepcopy(cifar.network)
    with torch.no_grad():
        network.fc10.bias[3] += 4
    changed = dataclasses.replace(cifar, network=network)
    rows = Classifier(changed).probabilities([g.png for g in cifar.reference_samples]).tolist()
    reference = [ReferenceSample(g.name, g.png, row) for g, row in zip(cifar.reference_samples, rows, strict=True)]
    return dataclasses.replace(changed, reference_samples=reference)


def test_responses_are_sent_without_delay():
    """With Nagle's algorithm the body of a response would wait for the header to be acknowledged, 40 ms."""
    accepted = []

    async def connect():
        with bind("127.0.0.1", 0) as listening:
            server = await asyncio.start_server(lambda _, writer: accepted.append(writer), sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                while not accepted:
                    await asyncio.sleep(0.01)
                theirs = accepted[0].get_extra_info("socket")
                found = theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for each in (writer, *accepted):
                    each.close()
        return found

    assert asyncio.run(connect()) != 0


def test_what_opened_the_classifier_has_ended(saved_bundle):
    """Its thread had a team of OpenMP's, which would slow down the one that answers."""
    with threaded(saved_bundle) as server:
        assert server.get("/readyz").status == 200
        for thread in threading.enumerate():
            if thread.name.startswith("open"):  # its work is done; that it ends may take a moment
                thread.join(60)
                assert not thread.is_alive()
        assert "network" in [thread.name for thread in threading.enumerate()]


def test_from_start_to_sigterm(saved_bundle, png, tmp_path):
    """One process's whole life: its line, its log, no image in it, accepted requests answered while it drains."""
    (tmp_path / "keys").write_text("# for the tests\n0123456789abcdef0123\n")
    with command(saved_bundle, "--key-file", tmp_path / "keys", "--drain-delay", 1, "--share-images") as server:
        assert server.loading == f"Loading {saved_bundle}, to be served at {server.url}\n"
        assert server.first == f"{saved_bundle} is served at {server.url}\n"
        ready = server.event("ready")
        assert ready["keys"] is True and ready["max_abs_diff"] <= 1e-6
        assert server.post(png).status == 401 and server.get("/readyz").status == 200
        key = {"Authorization": "Bearer 0123456789abcdef0123"}
        assert server.post(png, **key).status == 200
        assert verify(server.url, saved_bundle, key="0123456789abcdef0123").images == 6
        assert server.get("/v1/model", X_API_Key="0123456789abcdef0123").status == 200
        assert server.get("/metrics", **key).status == 200 and server.get("/metrics").status == 401
        assert server.get("/v1/model", Authorization="Bearer 0123456789abcdef012").status == 401
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(png)}\r\n"
        )
        with server.connect() as late:
            late.sendall(f"{head}Authorization: {key['Authorization']}\r\n\r\n".encode() + png[:20])
            server.process.send_signal(signal.SIGTERM)
            server.event("draining")
            response = server.get("/readyz")
            assert response.status == 503 and response.json["error"] == "not ready: draining"
            assert server.post(png, **key).status == 200  # still answered: balancers need a moment
            late.sendall(png[20:])
            assert late.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(SECONDS) == 0
        server.event("stopped")
        for event in server.events:
            if event["event"] == "request":
                assert {"id", "client", "method", "path", "status", "ms", "bytes"} <= set(event)
        text = "".join(server.lines)
        assert all(line.startswith("{") for line in server.lines) and "0123456789abcdef" not in text
        assert max(len(line) for line in server.lines) < 600  # no room for images
        with pytest.raises(OSError, match="refused"):
            server.get("/healthz")


def test_what_can_not_be_served_ends_the_command(saved_bundle, tmp_path, capfd, monkeypatch):
    shutil.copytree(saved_bundle, tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.delenv("ALEXNET_API_KEY", raising=False)

    def failing(*words, status=1):
        assert cli.run(["serve", *map(str, words), "--port", "0", "--device", "cpu"]) == status
        output = capfd.readouterr()
        lines = [line for line in output.err.splitlines() if not line.startswith("{")]
        assert len(lines) == 1 and "is served" not in output.out, output
        return lines[0]

    assert "model.safetensors has changed: SHA-256" in failing(tmp_path / "damaged")
    assert "there is no" in failing(tmp_path / "nowhere")
    assert "holds no bundle" in failing(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.run(["serve", str(saved_bundle), "--port", str(port), "--device", "cpu"]) == 1
        assert re.search(r"cannot listen at 127\.0\.0\.1:\d+: Address already in use", capfd.readouterr().err)
    assert cli.run(["serve", str(saved_bundle), "--port", "70000"]) == 2
    assert "--port is 70000; must be 0 to 65535" in capfd.readouterr().err
    assert "cannot listen at no.such.host.invalid" in failing(saved_bundle, "--host", "no.such.host.invalid")
    for words, told in (
        (("--max-queue-size", 0), "--max-queue-size is 0; must be a number above 0"),
        (("--max-megapixels", 51), "at most 50"),
        (("--max-images", 65), "must be at most --max-queue-size, 64"),
        (("--workers", 0), "--workers is 0"),
        (("--confidence-threshold", 1.5), "--confidence-threshold is 1.5; must be a probability"),
        (("--top", 0), "--top is 0"),
    ):
        assert told in failing(saved_bundle, *words, status=2)
    (tmp_path / "keys").write_text("short\n")
    assert "key 1 has 5 characters; must be 16 or more" in failing(saved_bundle, "--key-file", tmp_path / "keys")
    (tmp_path / "keys").write_text("# nothing\n")
    assert "holds no key" in failing(saved_bundle, "--key-file", tmp_path / "keys")
    monkeypatch.setenv("ALEXNET_API_KEY", "tooshort")
    assert "ALEXNET_API_KEY: key 1 has 8 characters" in failing(saved_bundle)


def test_a_bundle_with_wrong_reference_predictions_never_becomes_ready(cifar, tmp_path):
    """Every SHA-256 is correct; only the expected predictions of the reference images are wrong."""
    reference = dataclasses.replace(
        cifar.reference_samples[0], probabilities=cifar.reference_samples[0].probabilities[::-1]
    )
    dataclasses.replace(cifar, reference_samples=[reference]).save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="classes in another order"), threaded(tmp_path / "bundle"):
        pass


def test_not_ready_before_it_is_verified(saved_bundle, png, monkeypatch):
    from alexnet.serve import service
    from alexnet.serve.engine import Engine

    from .conftest import Threaded

    go, real = threading.Event(), Engine.open
    monkeypatch.setattr(service.Engine, "open", lambda *words: (go.wait(SECONDS), real(*words))[1])
    server = Threaded(service.Settings(saved_bundle))
    try:
        assert server.get("/healthz").status == 200
        for response in (server.get("/readyz"), server.post(png), server.get("/v1/model")):
            assert (
                response.status == 503
                and response.headers["Retry-After"] == "2"
                and "loading" in response.json["error"]
            )
        go.set()
        assert server.ready.wait(SECONDS) and server.post(png).status == 200
    finally:
        go.set()
        server.stop()


def asking(server, png, stop, statuses, shas):
    while not stop.is_set():
        response = server.post(png)
        statuses.append(response.status)
        shas.append(response.json["model_sha256"])


def test_a_new_bundle_takes_over_without_a_lost_request(cifar, other, png, tmp_path):
    path = cifar.save(tmp_path / "bundle")
    with threaded(path, reload_interval=0.05) as server:
        statuses, shas, stop = [], [], threading.Event()
        threads = [threading.Thread(target=asking, args=(server, png, stop, statuses, shas)) for _ in range(4)]
        for thread in threads:
            thread.start()
        first = server.get("/v1/model").json["model_sha256"]
        damaged = path / "model.safetensors"
        good = damaged.read_bytes()
        damaged.write_bytes(good[:-1] + b"x")  # is refused: the old one goes on
        wait(lambda: server.counted('alexnet_reloads_total{outcome="refused"}'))
        assert server.get("/readyz").status == 200 and server.get("/v1/model").json["model_sha256"] == first
        other.save(path)
        wait(lambda: server.get("/v1/model").json["model_sha256"] != first)
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200} and set(shas) == {first, server.get("/v1/model").json["model_sha256"]}
        assert verify(server.url, path).max_abs_diff <= 1e-6
        wait(lambda: not server.service._background)  # the old one is gone


def wait(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_a_file_that_is_being_replaced_is_no_change(cifar, tmp_path):
    path = cifar.save(tmp_path / "run" / "bundle")
    before = signature(tmp_path / "run")
    assert before == signature(path) != () and signature(tmp_path / "nowhere") == ()
    (path / "README.md").write_text("other")
    assert signature(path) != before


# Process 1, that of a container, which the kernel ends by no signal. Its log has its own number.
PROCESS_1 = "import os, sys; own = os.getpid; os.getpid = lambda: 1 if '_on_signal' in str(sys._getframe(1)) else own()"
HANG = "import threading; hang = lambda *_: threading.Event().wait(600)"
OPENING = f"{HANG}; from alexnet.serve.engine import Engine; Engine.open = hang"  # from a disk that hangs
DECODING = f"{HANG}; from alexnet.serve.engine import Engine; Engine.prepare = hang"
POST = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "


def test_the_drain_limit_holds_while_a_classifier_is_opened(saved_bundle):
    with command(saved_bundle, "--drain-seconds", 0.2, before=OPENING, wait=False) as server:
        assert server.get("/healthz").status == 200
        assert server.end() == 0
        assert server.events[-1]["event"] == "stopped: threads were still running at the drain limit"


def test_the_drain_limit_holds_during_a_long_decode(saved_bundle, png):
    with command(saved_bundle, "--drain-seconds", 0.2, before=DECODING) as server, server.connect() as client:
        server.event("ready")
        client.sendall(f"{POST}{len(png)}\r\n\r\n".encode() + png)
        wait(lambda: "alexnet_waiting 1.0" in server.get("/metrics").body.decode())
        assert server.end() == 0
        assert server.events[-1]["event"] == "stopped: threads were still running at the drain limit"


@pytest.mark.parametrize("process_1", [False, True])
def test_the_drain_limit_holds_where_nobody_reads_the_log(process_1, saved_bundle):
    """A full pipe blocks the main thread; the kernel ends the process, and a thread ends process 1."""
    code = "import os, fcntl; fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)"  # the pipe of standard error
    code += f"; {PROCESS_1}" * process_1
    with command(saved_bundle, "--drain-seconds", 0.2, before=code, read_log=False) as server:
        with server.connect() as client:
            client.sendall(b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            wait(lambda: waiting_bytes(server.process.stderr) > 4096 - 150)  # less than a line is left
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == (128 + signal.SIGALRM if process_1 else -signal.SIGALRM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_process_1(number, saved_bundle):
    with command(saved_bundle, "--drain-seconds", 600, before=f"{PROCESS_1}; {OPENING}", wait=False) as server:
        assert server.get("/healthz").status == 200
        server.process.send_signal(signal.SIGTERM)
        server.event("draining")
        assert server.end(number) == 128 + number


def test_few_open_files_allow_fewer_connections_and_nothing_else_changes(saved_bundle, png):
    """Also while the classifier is opened: a file that cannot be opened is not a damaged one."""
    with command(saved_bundle, files=64, wait=False) as server:
        held = [server.connect() for _ in range(200)]
        server.event("ready")
        assert server.event("fewer connections: the limit on open files (ulimit -n) is low")["max_connections"] == 16
        refused = 0
        for connection in held[16:]:
            refused += connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert refused == 184
        for connection in held:
            connection.close()
        wait(lambda: responds(server, png))
        assert server.end() == 0
        assert {event["level"] for event in server.events} == {"info", "warning"}
        assert len([event for event in server.events if event["event"] == "request"]) < 300 > len(server.lines) - 50


def responds(server, png) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.post(png).status == 200
    return False


def test_too_many_open_files_are_no_damage(saved_bundle):
    """Whatever the library is that cannot open its file."""
    code = f"""
import os, resource
from alexnet.bundle import Bundle
from alexnet.errors import AlexNetError, reason
Bundle.load({str(saved_bundle)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError as error:
    print(reason(error))
while held:
    try:
        Bundle.load({str(saved_bundle)!r})
        break
    except AlexNetError as error:
        print(reason(error))
    os.close(held.pop())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.splitlines()) == {"too many open files. Raise the limit: ulimit -n 4096"}
    assert len(found.stdout.splitlines()) >= 2


def waiting_bytes(pipe) -> int:
    return int.from_bytes(fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4), sys.byteorder)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(saved_bundle, first, second):
    with command(saved_bundle, "--drain-seconds", 600, before=OPENING, wait=False) as server:
        assert server.get("/healthz").status == 200
        server.process.send_signal(first)
        server.event("draining")
        assert server.end(second) == -second


@pytest.mark.slow
def test_a_second_signal_ends_several_processes_at_once(saved_bundle, png, tmp_path):
    words = (saved_bundle, "--workers", 2, "--threads", 1, "--drain-seconds", 600)
    with command(*words, TMPDIR=str(tmp_path)) as server, server.connect() as client:
        server.event("ready", 2)
        workers = {event["process"] for event in server.events if event["event"] == "ready"}
        client.sendall(f"{POST}{len(png)}\r\n\r\n".encode() + png[:5])  # is drained for
        server.process.send_signal(signal.SIGINT)
        server.event("draining", 2)
        assert server.end(signal.SIGINT) == 128 + signal.SIGINT
        assert list(tmp_path.iterdir()) == []  # the folder of their metrics
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)


@pytest.mark.slow
def test_several_processes(cifar, other, png, tmp_path):
    """They share a socket and their metrics, take a new bundle at SIGHUP, and one that dies is replaced."""
    path = cifar.save(tmp_path / "bundle")
    with command(path, "--workers", 2, "--threads", 1) as server:
        assert server.port, server.lines
        server.event("ready", 2)
        workers = {event["process"] for event in server.events if event["event"] == "ready"}
        assert len(workers) == 2
        for _ in range(10):
            assert server.post(png).status == 200
        assert server.counted('alexnet_images_total{outcome="answered"}') == 10
        assert server.counted("alexnet_ready") == 2
        first = server.get("/v1/model").json["model_sha256"]
        other.save(path)
        server.process.send_signal(signal.SIGHUP)
        server.event("reloaded", 2)
        assert {server.get("/v1/model").json["model_sha256"] for _ in range(10)} != {first}
        os.kill(min(workers), signal.SIGKILL)
        server.event("process died")
        server.event("ready", 3)
        assert server.post(png).status == 200
        assert server.end() == 0
        assert len([e for e in server.events if e["event"] == "stopped"]) == 2
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)


@pytest.mark.slow
def test_processes_with_a_damaged_bundle_end(cifar, tmp_path):
    path = cifar.save(tmp_path / "bundle")
    (path / "README.md").write_text("changed")
    with command(path, "--workers", 2, wait=False) as server:
        assert server.process.wait(SECONDS) == 1
        server._reader.join()
        assert any("README.md has changed" in line for line in server.lines)


@pytest.mark.slow
def test_children_of_a_killed_parent_end(cifar, tmp_path):
    with command(cifar.save(tmp_path / "bundle"), "--workers", 2) as server:
        workers = [event["process"] for event in server.events if event["event"] == "ready"]
        server.process.kill()

        def gone(worker):
            try:
                os.kill(worker, 0)
            except ProcessLookupError:
                return True
            return False

        wait(lambda: all(map(gone, workers)))


def test_elsewhere_without_a_key_it_warns(saved_bundle, capfd, monkeypatch):
    from alexnet.serve import run

    monkeypatch.delenv("ALEXNET_API_KEY", raising=False)
    monkeypatch.setattr(run, "serve", lambda *_: None)
    for words, warns in ((("--host", "0.0.0.0"), True), ((), False)):
        assert cli.run(["serve", str(saved_bundle), "--port", "0", "--device", "cpu", *words]) == 0
        text = capfd.readouterr().err
        assert ("requires no key. Pass --key-file" in text) == warns
    monkeypatch.setenv("ALEXNET_API_KEY", "0123456789abcdef")
    assert cli.run(["serve", str(saved_bundle), "--port", "0", "--device", "cpu", "--host", "0.0.0.0"]) == 0
    assert capfd.readouterr().err == ""


def test_starting_is_light():
    """The command line stays fast: nothing of the server is imported for the other commands."""
    code = (
        "import sys, alexnet.cli; print([m for m in ('fastapi', 'uvicorn', 'torch', 'starlette') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.replace("'", '"')) == []


def test_a_promotion_and_the_way_back_lose_no_request(cifar, other, png, tmp_path):
    """What ``alexnet promote`` and ``promote --back`` do to the served folder, while four clients ask."""
    path = cifar.save(tmp_path / "served")
    with threaded(path, reload_interval=0.05) as server:
        statuses, shas, stop = [], [], threading.Event()
        threads = [threading.Thread(target=asking, args=(server, png, stop, statuses, shas)) for _ in range(4)]
        for thread in threads:
            thread.start()
        first = server.get("/v1/model").json["model_sha256"]
        other.save(path, keep_previous=True)
        wait(lambda: server.get("/v1/model").json["model_sha256"] != first)
        second = server.get("/v1/model").json["model_sha256"]
        restore_previous(path)
        wait(lambda: server.get("/v1/model").json["model_sha256"] == first)
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200} and set(shas) == {first, second}
