"""A running server that answers: the client side of ``POST /v1/predict`` (docs/export.md gives the JSON).

One connection a request, no redirects, no proxies: what answers is what was named.
"""

import http.client
import secrets
import socket
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.manifest import ReferenceEntry
from alexnet.export.prediction import ImageInput, named
from alexnet.schema import ReferenceSample, check, class_fault, parse_json

SECONDS = 30.0  # to connect, and for each part of an answer
MOST_BYTES = 64_000_000  # of an answer


class Client:
    """A server at ``url``; ``key`` goes along as a bearer token. ``classes`` are those that it reports, in order."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url, self.key = url.rstrip("/"), key
        try:
            self.host = urlsplit(self.url).hostname or ""
        except ValueError:
            self.host = ""
        if not self.host:
            raise BundleError(f"{url!r} is no address of a server", "http://HOST:PORT")
        self.about = self._ask("GET", "/v1/model")
        names = self.about.get("classes")
        if not isinstance(names, list) or class_fault(names):
            raise self._strange("/v1/model", "names no classes")
        self.classes: tuple[str, ...] = tuple(names)

    def reference_samples(self) -> list[ReferenceSample]:
        """The reference images that the server offers for checking; none if it offers none."""
        try:
            entries = check(self.about.get("reference_samples") or [], list[ReferenceEntry])
            return [entry.decode(len(self.classes)) for entry in entries]
        except ValueError as error:
            raise self._strange("/v1/model", f"has a reference sample that is none: {error}") from error

    def probabilities(self, images: ImageInput | Sequence[ImageInput]) -> NDArray[np.float32]:
        """Class probabilities of each image, in the order of ``classes``: float32 [N, K]."""
        rows = [self._row(image, name) for name, image in named(images)]
        return np.array(rows, np.float32).reshape(len(rows), len(self.classes))

    def _row(self, image: ImageInput, name: str) -> list[float]:
        if isinstance(image, np.ndarray):
            image = decode.encode_png(image)
        data = image if isinstance(image, bytes) else decode.read(image)
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image.png"\r\n'
        body = head.encode() + b"Content-Type: image/png\r\n\r\n" + data + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        answer = self._ask("POST", f"/v1/predict?top={len(self.classes)}", body, kind)
        try:
            scores = {entry["label"]: float(entry["score"]) for entry in answer["predictions"][0]["top_k"]}
            return [scores[name] for name in self.classes]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._strange("/v1/predict", f"lacks {error} in the answer for {name}") from error

    def _ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> dict[str, Any]:
        parts = urlsplit(self.url)
        headers = {"Accept": "application/json"} | ({"Content-Type": kind} if kind else {})
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            host, port = self.host, parts.port
            if parts.scheme == "https":
                context = ssl.create_default_context()
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    host, port, timeout=SECONDS, context=context
                )
            else:
                connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
            try:
                connection.request(method, parts.path.rstrip("/") + path, body, headers)
                response = connection.getresponse()
                status, text = response.status, response.read(MOST_BYTES + 1)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, socket.gaierror, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BundleError(f"{self.url} does not answer: {reason}", "a running server", "alexnet serve") from error
        return self._read(path, status, text)

    def _read(self, path: str, status: int, text: bytes) -> dict[str, Any]:
        if status in (401, 403):
            raise BundleError(f"{self.url} answers {status}: it wants a key", "", "give --key-file")
        if status != 200 or len(text) > MOST_BYTES:
            text_value = " ".join(text[:200].decode("utf-8", "replace").split())
            raise self._strange(path, f"answers {status}: {text_value}" if status != 200 else "answers without end")
        try:
            answer = parse_json(text)
        except ValueError as error:
            raise self._strange(path, f"answers no JSON ({error})") from error
        if not isinstance(answer, dict):
            raise self._strange(path, "answers no JSON object")
        return answer

    def _strange(self, path: str, what: str) -> BundleError:
        what = "".join(c if c.isprintable() else "?" for c in what)
        return BundleError(f"{self.url}{path.partition('?')[0]} {what}", "an alexnet server", "check the address")
