"""An HTTP server of the files of a folder, with byte ranges as object storage has them, and faults on demand."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Objects:
    """What is served, what goes wrong (``faults``: file → what its next answers are), and what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, ""
        self.faults: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.busy = self.most_busy = 0  # requests at once
        self.pause = 0.0  # seconds before each answer
        self.ranges = True
        self.lock = threading.Lock()

    def fault(self, name: str) -> str:
        with self.lock:
            self.asked[name] += 1
            kinds = self.faults.get(name, [])
            return kinds.pop(0) if kinds else ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_GET(self) -> None:
        objects = self.objects
        with objects.lock:
            objects.busy += 1
            objects.most_busy = max(objects.most_busy, objects.busy)
        try:
            time.sleep(objects.pause)
            self.response(self.path.lstrip("/"))
        finally:
            with objects.lock:
                objects.busy -= 1

    def response(self, name: str) -> None:
        path, kind = self.objects.root / name, self.objects.fault(name)
        if not path.is_file() or kind == "500":
            self.send_error(500 if kind else 404)
            return
        data, status = path.read_bytes(), 200
        if self.objects.ranges and (asked := self.headers.get("Range")):
            start, end = asked.removeprefix("bytes=").split("-")
            data, status = data[int(start) : int(end) + 1], 206
        if kind == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)
        self.close_connection = kind == "cut"

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(root: Path) -> Iterator[Objects]:
    """The folder behind ``http://127.0.0.1:PORT`` (``.address``)."""
    objects = Objects(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"objects": objects}))
    server.daemon_threads = True
    objects.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
