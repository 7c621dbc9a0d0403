"""HTTP client of a running server: predicts with ``POST /v1/predict`` (docs/serving.md describes the JSON).

It follows no redirects and uses no proxies, so that the server at the given URL is the one that responds.
"""

import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from alexnet.data import decode
from alexnet.errors import BundleError
from alexnet.export.exported_model import ReferenceEntry
from alexnet.export.prediction import ImageInput, named
from alexnet.schema import ReferenceSample, check, class_fault, parse_json

TIMEOUT = 30.0  # seconds to connect, and for each part of a response
MAX_BYTES = 64_000_000  # of a response


class Client:
    """A server at ``url``.

    Args:
        url: ``http://HOST:PORT`` or ``https://…``, with a path prefix if the server is behind a proxy.
        key: API key, sent as a bearer token.

    Attributes:
        classes: The class names that the server reports, in the order of its probabilities.

    Raises:
        BundleError: The URL is invalid, or no alexnet server responds there.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        if not _has_host(self.url):
            raise BundleError(f"{url!r} is not the URL of a server", "http://HOST:PORT")
        if not key.isascii():
            raise BundleError("the API key has characters that are not ASCII", "", "give --key-file")
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.Client(
            headers=headers,
            timeout=TIMEOUT,
            trust_env=False,
            verify=ssl.create_default_context() if self.url.startswith("https:") else False,  # the system's CAs
            limits=httpx.Limits(max_keepalive_connections=0),  # no socket is left open
        )
        self.metadata = self._request("GET", "/v1/model")
        names = self.metadata.get("classes")
        if not isinstance(names, list) or class_fault(names):
            raise self._unexpected("/v1/model", "names no classes")
        self.classes: tuple[str, ...] = tuple(names)

    def reference_samples(self) -> list[ReferenceSample]:
        """The reference samples that the server shares; empty if it shares none."""
        try:
            entries = check(self.metadata.get("reference_samples") or [], list[ReferenceEntry])
            return [entry.decode(len(self.classes)) for entry in entries]
        except ValueError as error:
            raise self._unexpected("/v1/model", f"has an invalid reference sample: {error}") from error

    def probabilities(self, images: ImageInput | Sequence[ImageInput]) -> NDArray[np.float32]:
        """Class probabilities of each image, in the order of ``classes``: float32 [N, K]."""
        rows = [self._scores(image, name) for name, image in named(images)]
        return np.array(rows, np.float32).reshape(len(rows), len(self.classes))

    def _scores(self, image: ImageInput, name: str) -> list[float]:
        if isinstance(image, np.ndarray):
            image = decode.encode_png(image)
        data = image if isinstance(image, bytes) else decode.read(image)
        files = {"file": ("image.png", data, "image/png")}
        response = self._request("POST", f"/v1/predict?top={len(self.classes)}", files=files)
        try:
            scores = {entry["label"]: float(entry["score"]) for entry in response["predictions"][0]["top_k"]}
            return [scores[label] for label in self.classes]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._unexpected("/v1/predict", f"lacks {error} in the prediction for {name}") from error

    def _request(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """The JSON object of a response. Raises :class:`BundleError`."""
        try:
            with self._http.stream(method, self.url + path, **kwargs) as response:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise self._unexpected(path, f"sends more than {MAX_BYTES:,} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise BundleError(f"{self.url} does not respond: {reason}", "a running server", "alexnet serve") from error
        if response.status_code in (401, 403):
            raise BundleError(f"{self.url} returns {response.status_code}: it requires a key", "", "give --key-file")
        if response.status_code != 200:
            text = " ".join(body[:200].decode("utf-8", "replace").split())
            raise self._unexpected(path, f"returns {response.status_code}: {text}")
        try:
            value = parse_json(body)
        except ValueError as error:
            raise self._unexpected(path, f"returns no JSON ({error})") from error
        if not isinstance(value, dict):
            raise self._unexpected(path, "returns no JSON object")
        return value

    def _unexpected(self, path: str, problem: str) -> BundleError:
        problem = "".join(c if c.isprintable() else "?" for c in problem)
        return BundleError(f"{self.url}{path.partition('?')[0]} {problem}", "an alexnet server", "check the address")


def _has_host(url: str) -> bool:
    """Has ``url`` a host, and a valid port if any? httpx accepts ``http://[`` and port 123456."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:
        return False
