"""How fast, beside the engine alone: 16 clients, latency, images a second; on a machine with nothing else to do.

    ALEXNET_LOAD_RUN=RUN pytest -m slow -s tests/serve/test_load.py

asks a run of yours in place of an untrained AlexNet. Engine and server are measured in turn, and the median of the
rounds' ratios counts: a machine that others use too is not equally fast from one minute to the next. One process of one
thread a core, as docs/serving.md advises for many clients (ALEXNET_LOAD_OPTIONS has others). Clients are threads of one
process and take a share of the cores.
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
from alexnet.data import decode
from alexnet.export.classifier import Classifier
from alexnet.kernels import native_kernels

from .conftest import SECONDS, command

CLIENTS, WARM, MEASURED, ROUNDS = 16, 1.5, 6.0, 5  # seconds


@pytest.fixture
def run(whole_alexnet, tmp_path):
    given = os.environ.get("ALEXNET_LOAD_RUN")
    return Path(given) if given else whole_alexnet().save(tmp_path / "bundle")


def jpegs(count: int) -> list[bytes]:
    """Images as cameras make them, smooth, of 500 × 375 pixels."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = rng.integers(0, 256, (12, 16, 3), np.uint8)
        found.append(decode.encode_jpeg(decode.fit(small, 500, "squash")[:375]))
    return found


def engine_rate(classifier: Classifier, sent: list[bytes], seconds: float) -> float:
    """Images a second from bytes to predictions, batches of 32, nothing next to it."""
    done, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        classifier.predict(sent)
        done += len(sent)
    return done / (time.monotonic() - started)


def server_rate(port: int, sent: list[bytes]) -> tuple[float, list[float]]:
    """Images a second that sixteen clients get, each asking again when it is answered; seconds of each request."""
    times: list[float] = []
    begin, end = time.monotonic() + WARM, time.monotonic() + WARM + MEASURED

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        k = number
        while (started := time.monotonic()) < end:
            connection.request("POST", "/v1/predict", sent[k % 32], {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            if started >= begin:
                times.append(time.monotonic() - started)
            k += CLIENTS
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / MEASURED, times


@pytest.mark.slow
def test_sixteen_clients(run):
    native_kernels.build()
    classifier = Classifier(Bundle.load(run / "bundle" if (run / "bundle").is_dir() else run))
    sent, rounds, times = jpegs(32), [], []
    classifier.predict(sent)
    cores = len(os.sched_getaffinity(0))
    options = os.environ.get(
        "ALEXNET_LOAD_OPTIONS", f"--workers {cores} --threads 1 --max-batch-size {CLIENTS // cores}"
    )
    with command(run, *options.split()) as server:
        server.event("ready", cores if "--workers" in options else 1)
        for _ in range(ROUNDS):
            alone = engine_rate(classifier, sent, MEASURED)
            rate, seconds = server_rate(server.port, sent)
            rounds.append((alone, rate, rate / alone))
            times += seconds
    engine, rate, share = np.median(rounds, axis=0)
    p50, p99 = np.percentile(times, (50, 99))
    found = {"engine": engine, "server": rate, "share": share, "p50": p50, "p99": p99}
    found |= {"cores": cores, "clients": CLIENTS}
    print(json.dumps({name: round(float(value), 3) for name, value in found.items()}))
    print(options, "rounds:", [[round(float(value), 3) for value in one] for one in rounds])
