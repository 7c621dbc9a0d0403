"""How fast, beside the engine alone: 16 clients, latency, pictures a second; on a machine with nothing else to do.

    ALEXNET_LOAD_RUN=RUN pytest -m slow -s tests/deploy/server/test_load.py

asks a run of yours in place of an untrained AlexNet. Clients are threads of one process and take a share of the cores.
"""

import http.client
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.bundle import Bundle
from alexnet.data import pixels
from alexnet.deploy.classifier import Classifier

from .conftest import SECONDS, command

CLIENTS, WARM, MEASURED = 16, 4.0, 20.0  # seconds
SHARE = 0.9  # of the engine's own throughput


@pytest.fixture
def run(whole_alexnet, tmp_path):
    given = os.environ.get("ALEXNET_LOAD_RUN")
    return Path(given) if given else whole_alexnet().save(tmp_path / "bundle")


def jpegs(count: int) -> list[bytes]:
    """Pictures as cameras make them, smooth, of 500 × 375 pixels."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = rng.integers(0, 256, (12, 16, 3), np.uint8)
        found.append(pixels.encode_jpeg(pixels.fit(small, 500, "squash")[:375]))
    return found


def engine_rate(run: Path, sent: list[bytes], seconds: float) -> float:
    """Pictures a second from bytes to guesses, batches of 32, nothing beside it."""
    classifier = Classifier(Bundle.load(run / "bundle" if (run / "bundle").is_dir() else run))
    from alexnet.models import kernel

    kernel.build()
    classifier.predict(sent)
    done, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        classifier.predict(sent)
        done += len(sent)
    return done / (time.monotonic() - started)


@pytest.mark.slow
def test_sixteen_clients(run):
    sent = jpegs(32)
    alone = engine_rate(run, sent, MEASURED / 2)
    times: list[float] = []
    with command(run, "--batch", 16) as server:
        begin, end = time.monotonic() + WARM, time.monotonic() + WARM + MEASURED

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
            k = number
            while (started := time.monotonic()) < end:
                connection.request("POST", "/v1/predict", sent[k % 32], {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200, body
                if started >= begin:
                    times.append(time.monotonic() - started)
                k += CLIENTS
            connection.close()

        threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rate, (p50, p99) = len(times) / MEASURED, np.percentile(times, (50, 99))
    found = {"engine": alone, "server": rate, "share": rate / alone, "p50": p50, "p99": p99}
    found |= {"cores": len(os.sched_getaffinity(0)), "clients": CLIENTS}
    print(json.dumps({name: round(float(value), 3) for name, value in found.items()}))
    assert rate >= SHARE * alone, found
