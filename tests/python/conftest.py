"""Fixtures that several files use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from loradrop.models import resolve_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model; it is pulled once."""
    return resolve_model("smollm2")


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
