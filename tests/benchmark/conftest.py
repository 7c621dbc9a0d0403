"""The process settings of a candidate end with its test: they last until the process ends otherwise."""

from collections.abc import Iterator

import pytest

from alexnet.benchmark import steps


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    yield
    steps._settings.close()
