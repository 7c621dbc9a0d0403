"""FAULTS 25 to 32 against the real server: what is refused, with which status, and that the next good request works."""

import json
import logging
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from alexnet.data import decode
from alexnet.serve.limits import Limits

from .conftest import SECONDS, form, threaded
from .test_run import wait


def resident() -> int:
    """Bytes of this process, which the servers in threads share, that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def bomb(side: int) -> bytes:
    """A PNG of a few kB that claims side × side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * 10_000, 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wrecks(good: list[bytes], count: int, seed: int) -> list[bytes]:
    """Files cut, with bytes changed, with parts doubled, or of nothing but noise."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        data = bytearray(good[i % len(good)])
        match i // len(good) % 4:
            case 0:
                data = data[: rng.integers(0, len(data))]
            case 1:
                for at in rng.integers(0, len(data), 1 + i % 9):
                    data[at] = rng.integers(0, 256)
            case 2:
                at, size = rng.integers(0, len(data)), int(rng.integers(1, 200))
                data[at:at] = data[at : at + size]
            case _:
                data[8:] = rng.bytes(len(data) - 8)
        found.append(bytes(data))
    return found


def good_files() -> list[bytes]:
    """A small image as a file of every format."""
    import io

    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    found = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


# 25: bad images


BAD = {
    "empty": (b"", "is empty"),
    "one byte": (b"x", "has only 1 byte"),
    "HTML": (b"<!doctype html><p>404", "looks like HTML"),
    "half a JPEG": (good_files()[1][:-40], "truncated"),
    "12 kB of 10,000²": (bomb(10_000), "100.0 megapixels"),
    "65,000²": (bomb(65_000), "more than 50 megapixels"),
    "noise": (np.random.default_rng(0).bytes(3000), "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_with_its_reason(server, png, name):
    data, words = BAD[name]
    for response in (server.post(data), server.files((name, data))):
        assert response.status == 422, response.body
        assert words in response.json["error"] and words in response.json["predictions"][0]["error"]
        assert "\n" not in response.json["error"]
    assert server.post(png).status == 200


def test_extreme_shapes_are_answered(server):
    for shape in ((1, 1, 3), (1, 5000, 3), (5000, 1, 3)):
        assert server.post(decode.encode_png(np.zeros(shape, np.uint8))).status == 200


def fuzz(server, png, count, seed):
    """Statuses of ``count`` damaged files, sent by four clients; the memory that is kept afterwards, bytes."""
    files = wrecks(good_files(), count, seed)
    for data in files[:40]:  # what every server keeps: threads, caches
        server.post(data)
    before = resident()
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda data: server.post(data, "image/jpeg"), files))
    assert server.post(png).status == 200
    for response in responses:
        if response.status != 200:
            assert response.json["predictions"][0]["error"] and "\n" not in response.json["error"]
    return [response.status for response in responses], resident() - before


def test_damaged_files_are_answered_or_refused(server, png):
    statuses, kept = fuzz(server, png, 112, seed=1)
    assert set(statuses) <= {200, 422} and statuses.count(422) > 30
    assert kept < 50e6


@pytest.mark.slow
def test_two_thousand_damaged_files(server, png):
    statuses, kept = fuzz(server, png, 2000, seed=2)
    assert set(statuses) <= {200, 422} and statuses.count(422) > 500
    assert kept < 50e6


@pytest.mark.slow
def test_five_thousand_requests_leave_no_memory_behind(saved_bundle, png):
    """Of every kind, good and bad, from eight clients; the memory is that of the server's process alone."""
    from .conftest import command

    large = decode.encode_png(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8))
    bad = wrecks(good_files(), 28, seed=4)

    def ask(server, k):
        match k % 8:
            case 0:
                return server.post(large)
            case 1:
                return server.files(*((f"{i}.png", png) for i in range(16)), query="?embedding=true")
            case 2:
                return server.post(png, query="?saliency=gradient")
            case 3:
                return server.post(bad[k // 8 % len(bad)])
            case 4:
                return server.get(f"/strange/{k}")
            case 5:
                return server.post(png, X_Request_ID=f"id-{k}", query=f"?unknown{k}=1")
            case 6:
                return server.post(png, query="?saliency=grad_cam")
            case _:
                return server.get("/v1/model")

    with command(saved_bundle) as server, ThreadPoolExecutor(8) as pool:
        statuses, memory = [], []
        for part in range(10):
            start = 500 * part
            statuses += [one.status for one in pool.map(lambda k: ask(server, k), range(start, start + 500))]
            memory.append(server.counted("process_resident_memory_bytes"))
        print("resident, MB:", [round(size / 1e6) for size in memory])
        assert len(statuses) == 5000 and set(statuses) == {200, 404, 422}
        assert max(memory[-3:]) - memory[1] < 40e6, memory
        assert server.counted("process_open_fds") < 60


def test_bombs_take_no_memory(server):
    server.post(bomb(10_000))
    before = resident()
    for _ in range(20):
        assert server.post(bomb(65_000)).status == 422
    assert resident() - before < 50e6


def test_fewer_pixels_when_told(saved_bundle):
    with threaded(saved_bundle, Limits(max_megapixels=0.01)) as server:
        assert server.post(decode.encode_png(np.zeros((100, 100, 3), np.uint8))).status == 200
        response = server.post(decode.encode_png(np.zeros((101, 101, 3), np.uint8)))
        assert response.status == 422 and "must be at most 0.01 megapixels" in response.json["error"]


# 26: bodies


def raw(server, head: str, body: bytes = b"", read: bool = True) -> bytes:
    """What comes back for bytes on a bare socket."""
    with server.connect() as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        found = b""
        while read and (part := connection.recv(65536)):
            found += part
            if b"\r\n\r\n" in found and b"HTTP/1.1 2" not in found and found.endswith(b"}"):
                break
        return found


POST = "POST /v1/predict HTTP/1.1\nHost: localhost\nContent-Type: image/png\n"


def test_a_large_body_is_refused_by_its_length(server):
    response = raw(server, POST + "Content-Length: 400000000")  # not a byte of it is sent
    assert response.startswith(b"HTTP/1.1 413 ") and b"the body is over 20 MB" in response


def test_a_client_that_sends_all_of_it_hears_why(server, png):
    response = server.post(b"\0" * 21_000_000)  # http.client writes everything before it reads
    assert response.status == 413 and response.headers["Connection"] == "close"
    assert server.post(png).status == 200


def test_a_chunked_body_without_length(server, png):
    with server.connect() as connection:
        connection.sendall((POST + "Transfer-Encoding: chunked\n\n").replace("\n", "\r\n").encode())
        connection.sendall(f"{len(png):x}\r\n".encode() + png + b"\r\n0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    before, chunk = resident(), b"100000\r\n" + b"\0" * 0x100000 + b"\r\n"
    with server.connect() as connection:
        connection.sendall((POST + "Transfer-Encoding: chunked\n\n").replace("\n", "\r\n").encode())
        sent = 0
        connection.settimeout(0.01)
        while sent < 400:
            connection.settimeout(SECONDS)
            connection.sendall(chunk)
            sent += 1
            connection.settimeout(0.001)
            try:
                found = connection.recv(65536)
                break
            except TimeoutError:
                continue
        assert found.startswith(b"HTTP/1.1 413 ") and sent < 100
    assert resident() - before < 150e6
    assert server.post(png).status == 200


def test_ten_thousand_parts(server, png):
    body, kind = form(*[("x", b"")] * 10_000)
    response = server.post(body, kind)
    assert response.status == 413 and response.json["error"].startswith("over 16 images in one request")
    boundary = "b"
    fields = b"".join(b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n' for _ in range(10_000))
    response = server.post(fields + b"--b--\r\n", f"multipart/form-data; boundary={boundary}")
    assert response.status == 422 and "a field that is no file" in response.json["error"]
    assert server.post(png).status == 200


OPEN = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nx"


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("text/plain", b"x", 415, "Content-Type is text/plain; must be multipart/form-data"),
        ("application/json", b"{}", 415, "Content-Type is application/json"),
        ("application/x-www-form-urlencoded", b"file=x", 415, "Content-Type is application/x-www-form"),
        ("", b"x", 415, "Content-Type is missing"),
        ("multipart/form-data", b"x", 400, "Missing boundary"),
        ("multipart/form-data; boundary=b", b"", 400, "it has no end"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422, "the form has no 'file'"),
        ("multipart/form-data; boundary=b", b"no boundary here", 400, "the form cannot be read"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 400, "the form cannot be read"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=f\r\n\r\n", 422, "no file"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nx",
            400,
            "no end",
        ),
        ("multipart/form-data; boundary=" + "b" * 300, b"--", 400, "the form cannot be read"),
    ],
)
def test_bodies_of_the_wrong_kind(server, kind, body, status, words):
    response = server.post(body, kind)
    assert response.status == status and words in response.json["error"], response.body


def test_a_compressed_body_is_refused(server, png):
    assert server.post(png, Content_Encoding="gzip").status == 415


def test_fuzzed_forms_end_in_a_reason(server, png):
    rng = np.random.default_rng(3)
    body, kind = form(("a.png", png), ("b.png", png))
    for i in range(60):
        wreck = bytearray(body[: rng.integers(0, len(body))] if i % 3 == 0 else body)
        for at in rng.integers(0, max(1, min(len(wreck), 250)), 1 + i % 7):
            wreck[at : at + 1] = bytes([rng.integers(0, 256)])
        response = server.post(bytes(wreck), kind)
        assert response.status in (200, 400, 413, 422), response.body
        assert response.status == 200 or response.json["error"]


# 27: slow and vanishing clients


@pytest.fixture(scope="module")
def hasty(saved_bundle):
    """A server without patience."""
    with threaded(saved_bundle, Limits(header_seconds=1, body_seconds=1.5)) as found:
        yield found


def test_slow_heads_and_bodies_meet_a_deadline(hasty, png):
    with hasty.connect() as silent, hasty.connect() as slow, hasty.connect() as body:
        slow.sendall(b"POST /v1/pre")
        body.sendall((POST + "Content-Length: 1000\n\n").replace("\n", "\r\n").encode() + b"x")
        wait(lambda: hasty.post(png).status == 200)  # nobody waits for them
        assert silent.recv(1000).startswith(b"HTTP/1.1 408 ") and slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        found = b""
        while not found.endswith(b"}"):
            found += body.recv(1000)
        assert found.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 1.5 seconds" in found
    with hasty.connect() as again:  # a second request on a connection has the same deadline
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):
            found += again.recv(1000)
        assert found.startswith(b"HTTP/1.1 200 ")
        again.sendall(b"GET /heal")
        assert again.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections(saved_bundle, png):
    """Silent ones hold their places, here as long as the test takes."""
    with threaded(saved_bundle, Limits(header_seconds=600, max_connections=12)) as server:
        connections = server.worker.server.server_state.connections
        wait(lambda: not connections)
        held = [server.connect() for _ in range(12)]
        try:
            wait(lambda: len(connections) == 12)
            with server.connect() as one_more:
                found = one_more.recv(1000)
            assert found.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in found
        finally:
            for connection in held:
                connection.close()
        wait(lambda: not connections)
        assert server.post(png).status == 200


def test_clients_that_vanish_leave_nothing_behind(server, png):
    lost = server.counted('alexnet_requests_total{route="/v1/predict",status="499"}')
    for cut in (10, len(png) // 2, len(png)):
        with server.connect() as connection:
            head = (POST + f"Content-Length: {len(png)}\n\n").replace("\n", "\r\n").encode()
            connection.sendall(head + png[:cut])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not goodbye
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.service.admission.images + server.service.admission.bytes:
        time.sleep(0.02)
    assert (server.service.admission.images, server.service.admission.bytes) == (0, 0)
    assert server.post(png).status == 200
    assert server.counted('alexnet_requests_total{route="/v1/predict",status="499"}') >= lost


def test_ending_does_not_wait_for_the_slow(saved_bundle):
    with threaded(saved_bundle, Limits(drain_seconds=1)) as server:
        idle, slow = server.connect(), server.connect()
        slow.sendall((POST + "Content-Length: 1000\n\n").replace("\n", "\r\n").encode() + b"x")
        time.sleep(0.2)
        server.stop()  # it would wait until the slow client sends the rest: this test would not end
        idle.close()
        slow.close()


# 28: overload


class Slowed:
    """The engine with a pause at each batch, so that a test machine of any speed is overloaded."""

    def __init__(self, engine, seconds):
        self.engine, self.seconds, self.go = engine, seconds, threading.Event()
        self.go.set()

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def predict(self, images, options):
        self.go.wait(SECONDS)
        time.sleep(self.seconds)
        return self.engine.predict(images, options)


def test_ten_times_overload(saved_bundle, png):
    """What is accepted is answered; the rest hears 503 and when to come again; then all is well."""
    limits = Limits(max_queue_size=8, max_batch_size=4, max_images=4)
    with threaded(saved_bundle, limits) as server:
        server.service._batcher.engine = Slowed(server.service.engine, 0.05)

        def client(_):
            return server.post(png)

        with ThreadPoolExecutor(80) as pool:
            responses = list(pool.map(client, range(160)))
        statuses = [response.status for response in responses]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 8, statuses
        for response in responses:
            if response.status == 503:
                assert 1 <= int(response.headers["Retry-After"]) <= 60 and "busy: " in response.json["error"]
            else:
                assert len(response.json["predictions"][0]["top_k"]) == 5
        counted = server.counted('alexnet_images_total{outcome="answered"}')
        assert counted == statuses.count(200)  # nothing that was accepted is lost
        assert server.counted('alexnet_images_total{outcome="lost"}') == 0
        assert server.counted("alexnet_waiting") == 0 and server.service.admission.images == 0
        assert [server.post(png).status for _ in range(5)] == [200] * 5


def test_one_request_does_not_get_half_of_a_queue(saved_bundle, png):
    with threaded(saved_bundle, Limits(max_queue_size=4, max_images=4)) as server:
        slowed = server.service._batcher.engine = Slowed(server.service.engine, 0)
        slowed.go.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(server.files, ("a", png), ("b", png))
            until = time.monotonic() + SECONDS
            while server.service.admission.images < 2 and time.monotonic() < until:
                time.sleep(0.01)
            assert server.files(("a", png), ("b", png), ("c", png)).status == 503
            slowed.go.set()
            assert first.result().status == 200


def test_a_late_response_is_a_refusal(saved_bundle, png):
    with threaded(saved_bundle, Limits(request_timeout=0.3)) as server:
        slowed = server.service._batcher.engine = Slowed(server.service.engine, 0)
        slowed.go.clear()
        response = server.post(png)
        slowed.go.set()
        assert response.status == 503 and "no prediction within 0.3 seconds" in response.json["error"]
        assert response.headers["Retry-After"] == "5"
        wait(lambda: server.post(png).status == 200)


def test_a_network_that_fails_fails_only_its_batch(server, png, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(type(server.service.engine), "predict", broken)
    response = server.post(png)
    monkeypatch.undo()
    assert response.status == 500 and "boom" not in response.body.decode()
    assert any(record.getMessage() == "batch failed" for record in caplog.records)
    assert server.post(png).status == 200


# 30: good and bad together


def test_good_images_are_answered_beside_bad_ones(server, png):
    response = server.files(("good.png", png), ("bad.png", png[:50]), ("empty", b""), ("again.png", png))
    assert response.status == 200
    one, two, three, four = response.json["predictions"]
    assert one["top_k"] and four["top_k"] and "error" not in one
    assert two == {"filename": "bad.png", "error": two["error"]} and "bad.png" in two["error"]
    assert "is empty" in three["error"] and "top_k" not in three
    none = server.files(("bad.png", png[:50]), ("empty", b""))
    assert none.status == 422 and len(none.json["predictions"]) == 2 and "and 1 more" in none.json["error"]


# 32: addresses, paths, injection


def test_an_address_or_a_path_is_no_image(server):
    boundary = "multipart/form-data; boundary=b"
    for value in ("http://169.254.169.254/latest", "/etc/passwd", "file:///etc/passwd"):
        body = f'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n{value}\r\n--b--\r\n'.encode()
        response = server.post(body, boundary)
        assert response.status == 422 and "addresses are not read" in response.json["error"]
        for path in (f"/v1/predict?file={value}", f"/v1/predict?url={value}"):
            assert server.ask("POST", path, b"", {"Content-Type": "image/png"}).status == 422
    for path in ("/../../etc/passwd", "/page.css/../../conftest.py", "/%2e%2e/%2e%2e/etc/passwd", "/page/index.html"):
        assert server.get(path).status == 404


def test_nothing_can_be_put_into_headers_or_the_log(server, png, caplog):
    name = 'x"\\u001b[31m<b>\\n{"event": "fake"}'
    body, kind = form((name, png[:40]))
    caplog.set_level(logging.INFO, "alexnet.server")
    response = server.ask(
        "POST",
        "/v1/predict?%0d%0aSet-Cookie:%20a=b",
        body,
        {"Content-Type": kind, "X-Request-ID": "a\tb", "User-Agent": "\x1b[31m"},
    )
    assert response.status == 422 and "Set-Cookie" not in response.headers
    raw(server, "GET /%0a%7b%22event%22:%22fake%22%7d%1b[31m HTTP/1.1\nHost: localhost")
    from alexnet.serve.logs import JsonFormatter

    until = time.monotonic() + SECONDS
    while time.monotonic() < until and not any("fake" in str(r.__dict__.get("fields")) for r in caplog.records):
        time.sleep(0.02)
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "alexnet.server"]
    assert len(lines) >= 2
    for line in lines:
        assert line.isascii() and line.isprintable() and json.loads(line)["event"] == "request"
    assert not any("Set-Cookie" in line or "x\\" in line for line in lines)  # neither queries nor names are logged


def test_no_request_leaves_the_machine(server, png, monkeypatch):
    """The server opens no connection and no file because of what a request says."""
    import builtins

    opened: list[object] = []
    here = threading.get_ident()
    real = builtins.open
    monkeypatch.setattr(
        builtins,
        "open",
        lambda *args, **options: (threading.get_ident() != here and opened.append(args), real(*args, **options))[1],
    )
    with ThreadPoolExecutor(1):
        assert server.files(("http://example.com/a.png", png), ("/etc/passwd", png)).status == 200
    assert opened == []


# HTTP itself


def test_what_is_no_http(server, png):
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\0" * 100):
        with server.connect() as connection:
            connection.sendall(junk + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000)[:12] in (b"", b"HTTP/1.1 400")
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000)
        assert connection.recv(1000)[:12] == b"HTTP/1.1 431"
    assert server.post(png).status == 200
