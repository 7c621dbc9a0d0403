"""HTTP/1.1 as other people write it: two lengths, errors before any route, HEAD, clients that do not read."""

import json
import socket

import jsonschema
import pytest

from alexnet.serve.limits import Limits
from alexnet.serve.middleware import HEADERS

from .conftest import form, threaded
from .test_run import wait

HEAD = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def exchange(server, sent: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    with server.connect() as connection:
        connection.sendall(sent)
        response = b""
        while part := connection.recv(65536):
            response += part
    return response


def check_problem(server, response: bytes, status: int) -> None:
    """One response, whose body is as the description says, with an id and the headers for browsers."""
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert first.startswith(f"HTTP/1.1 {status} "), response
    assert headers["content-type"] == "application/json" and headers["connection"] == "close"
    assert {name.decode(): value.decode() for name, value in HEADERS}.items() <= headers.items()
    components = server.description()["components"]
    problem = json.loads(body)  # and nothing behind it
    jsonschema.validate(problem, {"$ref": "#/components/schemas/ErrorResponse", "components": components})
    assert problem["request_id"] == headers["x-request-id"] and "bytearray" not in problem["error"]


@pytest.mark.parametrize("order", [0, 1])
def test_two_lengths_end_the_connection(server, png, order):
    """RFC 9112, 6.3: a proxy may have read another request than this server, so the next one is not trusted."""
    lengths = [f"Content-Length: {len(png)}\r\n", "Transfer-Encoding: chunked\r\n"][:: -1 if order else 1]
    sent = HEAD + "".join(lengths) + "\r\n"
    body = f"{len(png):x}\r\n".encode() + png + b"\r\n0\r\n\r\n"
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    response = exchange(server, sent.encode() + body + smuggled)
    check_problem(server, response, 400)
    response = exchange(server, f"{HEAD}{lengths[0]}{lengths[1]}\r\n0\r\n\r\n".encode() + smuggled)
    check_problem(server, response, 400)


GET = b"GET /healthz HTTP/1.1\r\n"
MALFORMED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "half a line": (b"GET\r\n\r\n", 400),
    "no Host": (GET + b"\r\n", 400),
    "two hosts": (GET + b"Host: localhost\r\nHost: localhost\r\n\r\n", 400),
    "a space before the colon": (GET + b"Host: localhost\r\nX : 1\r\n\r\n", 400),
    "two lengths": (HEAD.encode() + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
    "a length that is none": (HEAD.encode() + b"Content-Length: -1\r\n\r\n", 400),
    "a chunk without a size": (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "an unknown coding": (HEAD.encode() + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "two codings": (HEAD.encode() + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "codings in HTTP/1.0": (HEAD.replace("1.1", "1.0").encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two origins": (HEAD.encode() + b"Origin: http://evil.example\r\nOrigin: http://localhost\r\n\r\n", 400),
    "two sites": (HEAD.encode() + b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none\r\n\r\n", 400),
    "two keys": (HEAD.encode() + b"X-API-Key: a\r\nX-API-Key: b\r\n\r\n", 400),
    "another version": (b"GET /healthz HTTP/3.7\r\nHost: localhost\r\n\r\n", 505),
    "the start of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a large head": (GET + b"Host: localhost\r\nX: " + b"a" * 100_000, 431),
    "a head of 10 MB": (GET + b"Host: localhost\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n", 431),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_refused_as_everything_else(server, png, name):
    sent, status = MALFORMED[name]
    check_problem(server, exchange(server, sent), status)
    assert server.post(png).status == 200


def test_absolute_targets_name_the_host(server):
    """RFC 9112, 3.2.2: a server accepts what a proxy gets, and the host in the target is the one that counts."""

    def status(target: str, host: str = "localhost") -> int:
        sent = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        return int(exchange(server, sent.encode()).split(b" ", 2)[1])

    assert status("http://localhost/healthz") == status("HTTP://127.0.0.1:80/v1/model?reference_samples=false") == 200
    assert status("http://localhost/v1/model", host="evil.example") == 200
    assert status("http://evil.example/v1/model") == status("http://evil.example/") == 421
    assert status("http://localhost") == 200 and status("ftp://localhost/healthz") == 404


def test_no_response_is_a_redirect(server):
    """A redirect to the path without its slash would lead to the host that the request names."""
    for path in ("/healthz/", "/v1/model/", "/v1/predict/", "//v1/model"):
        assert server.get(path).status == 404


@pytest.mark.parametrize("host", ["evil@localhost", "localhost/x", "localhost?x", "localhost#x"])
def test_a_host_is_nothing_but_a_host(server, host):
    assert server.get("/v1/model", Host=host).status == 421


def test_chunks_of_one_byte_do_not_keep_others_waiting(server, monkeypatch):
    """What is parsed at once is bounded: others get their turn after 16 kB, not after 256 kB."""
    sizes = []
    received = server.worker.server.config.http_protocol_class.data_received
    monkeypatch.setattr(
        server.worker.server.config.http_protocol_class,
        "data_received",
        lambda self, data: (sizes.append(len(data)), received(self, data))[1],
    )
    with server.connect() as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")
    assert sum(sizes) > 300_000 and max(sizes) <= 16384


def test_a_connection_too_many_and_a_late_head(saved_bundle):
    with threaded(saved_bundle, Limits(header_seconds=1.5, max_connections=1)) as server:
        server.description()
        with server.connect() as first:
            check_problem(server, exchange(server, b""), 503)
            response = b""
            while part := first.recv(65536):
                response += part
            check_problem(server, response, 408)


def test_head_is_get_without_a_body(server):
    for path in ("/healthz", "/readyz", "/metrics", "/v1/model", "/v1/filters.png", "/", "/page.css", "/openapi.json"):
        got, head = server.get(path), server.ask("HEAD", path)
        assert head.status == got.status == 200 and head.body == b""
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert server.ask("HEAD", "/v1/predict").status == 405 and server.ask("HEAD", "/nothing").status == 404
    assert server.ask("POST", "/healthz").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "latin-1", "idna", "rot13", "none-such", "%00", "base64"])
def test_forms_are_utf_8(server, png, charset):
    body, kind = form(("ä.png", png))
    response = server.post(body, f"{kind}; charset={charset}")
    assert response.status == 415 and response.json["error"].endswith("Send the form in UTF-8")
    for same in ("utf-8", "UTF8", '"utf-8"'):
        assert server.post(body, f"{kind}; charset={same}").json["predictions"][0]["filename"] == "ä.png"


def test_clients_that_never_read_are_closed(saved_bundle, png):
    """Many requests on each connection, of which no response is read, take no place for long."""
    request = f"{HEAD}Content-Length: {len(png)}\r\n\r\n".replace("/v1/predict", "/v1/predict?embedding=true")
    with threaded(saved_bundle, Limits(write_seconds=0.3, max_connections=8, max_queue_size=64)) as server:
        connections = server.worker.server.server_state.connections
        held = [server.connect() for _ in range(8)]
        wait(lambda: len(connections) == 8)
        for connection in held:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
        sent = (request.encode() + png) * 400

        def write() -> bool:
            for connection in held:
                try:
                    connection.send(sent)
                except (BlockingIOError, ConnectionError):
                    continue
            return not connections

        wait(write)
        assert server.post(png).status == 200
        for connection in held:
            connection.close()


def test_a_client_that_reads_slowly_has_its_response(server, png):
    """The deadline is for each part of a response, not for all of them together."""
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        response = b""
        while part := connection.recv(1000):
            response += part
    assert json.loads(response.partition(b"\r\n\r\n")[2]) == server.description()
