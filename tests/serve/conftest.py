"""Real servers on real sockets: in a thread of this process, or as the command in processes of their own."""

import asyncio
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from export.conftest import cifar, onnx_file, saved_bundle, whole_alexnet  # noqa: F401

from alexnet.serve.limits import Limits
from alexnet.serve.run import Worker, bind, url
from alexnet.serve.service import Settings

SECONDS = 300  # for what ends in a second, since an import alone takes a minute on a busy machine


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)


def form(*files: tuple[str, bytes], field: str = "file") -> tuple[bytes, str]:
    """The body of a form with these files, and its content type."""
    boundary = secrets.token_hex(8)
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


DESCRIPTION: dict = {}


def check_described(description: dict, method: str, path: str, response: Answer) -> None:
    """Every response, errors too, has a status, a type and the fields that the OpenAPI description has."""
    kind, problem = response.headers["Content-Type"].partition(";")[0], {"$ref": "#/components/schemas/ErrorResponse"}
    operations = description["paths"].get(path.partition("?")[0], {})
    operation = operations.get("get" if method == "HEAD" else method.lower())
    if operation is None:  # a file of the page, or an error of an address or a method that does not exist
        if response.status < 400 or method == "HEAD":
            return
        assert kind == "application/json", response.body
        schema = problem
    else:
        contents = operation["responses"][str(response.status)]["content"]
        assert kind in contents, (method, path, response.status, kind)
        schema = contents[kind]["schema"]
    if kind == "application/json" and method != "HEAD":
        jsonschema.validate(response.json, {**schema, "components": description["components"]})


class Client:
    """Asks a server at ``port``, one connection a question."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body=None, headers=None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = Answer(connection.getresponse())
        finally:
            connection.close()
        if path != "/openapi.json":
            check_described(self.description(), method, path, response)
        return response

    def description(self) -> dict:
        """The OpenAPI description; all servers have the same one."""
        if not DESCRIPTION:
            DESCRIPTION.update(self.ask("GET", "/openapi.json").json)
        return DESCRIPTION

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, data: bytes, kind: str = "image/png", query: str = "", **headers: str) -> Answer:
        given = {"Content-Type": kind} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.ask("POST", f"/v1/predict{query}", data, given)

    def files(self, *files: tuple[str, bytes], query: str = "") -> Answer:
        return self.post(*form(*files), query)

    def connect(self) -> socket.socket:
        """A bare socket, for what no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def counted(self, name: str) -> float:
        """A number of /metrics, by its line's beginning."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(name):
                return float(line.rpartition(" ")[2])
        return 0.0


class Threaded(Client):
    """A server in a thread; everything but signals is as in the command."""

    def __init__(self, settings: Settings) -> None:
        self.listening = bind("127.0.0.1", 0)
        super().__init__(self.listening.getsockname()[1])
        self.worker, self.ready, self.error = Worker(settings), threading.Event(), None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        async def work() -> None:
            self.loop = asyncio.get_running_loop()
            await self.worker.run(self.listening, self.ready.set)

        try:
            asyncio.run(work())
        except Exception as error:
            self.error = error
        finally:
            self.ready.set()

    @property
    def service(self):
        return self.worker.service

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.worker.stop)
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


@contextmanager
def threaded(path: Path, limits: Limits | None = None, **settings) -> Iterator[Threaded]:
    server = Threaded(Settings(path, limits or Limits(), **settings))
    try:
        assert server.ready.wait(SECONDS)
        if server.error is not None:
            raise server.error
        yield server
    finally:
        server.stop()


class Command(Client):
    """``alexnet serve`` as a process, with what it printed."""

    def __init__(
        self,
        *words: str,
        wait: bool = True,
        before: str = "",
        files: int = 0,
        read_log: bool = True,
        **environment: str,
    ) -> None:
        """``before``: code that the process runs first. ``files``: how many it may open."""
        start = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n" if files else ""
        code = f"{start}{before}\nfrom alexnet.cli import main\nmain()"
        call = [sys.executable, "-c", code, "serve", *map(str, words), "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(
            call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read if read_log else lambda: None)
        self._reader.start()
        self.loading = self.process.stdout.readline()  # the first line has the address; it may come before an error
        self.first = self.process.stdout.readline() if wait else ""
        address = re.search(r"http://\S+:(\d+)$", self.loading.strip())
        super().__init__(int(address[1]) if address else 0)

    def _read(self) -> None:
        self.lines.extend(self.process.stderr)

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def event(self, name: str, count: int = 1) -> dict:
        """The event called so, once it has happened ``count`` times."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            found = [event for event in self.events if event["event"] == name]
            if len(found) >= count:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no {name} in {self.lines}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


@contextmanager
def command(*words, **options) -> Iterator[Command]:
    server = Command(*words, **options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def server(saved_bundle) -> Iterator[Threaded]:  # noqa: F811
    """The small classifier behind the server's own limits; many tests ask it."""
    with threaded(saved_bundle) as found:
        yield found


@pytest.fixture(scope="session")
def png(cifar) -> bytes:  # noqa: F811
    """An image that can be answered."""
    return cifar.reference_samples[0].png


__all__ = ["Answer", "Client", "Command", "Threaded", "command", "form", "threaded", "url"]
