"""A model's file, opened as the options say."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from loradrop._core import Model
from loradrop.options import ContextOptions

THP_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def load_model(path: str | os.PathLike[str], options: ContextOptions) -> Model:
    """Return the model in a GGUF file.

    Warns with a RuntimeWarning, for the caller's caller, if huge pages are asked for and the system gives none.

    Raises
    ------
    ModelError
        If the file cannot be used as a model.
    """
    model = Model(
        os.fspath(path),
        n_gpu_layers=options.n_gpu_layers,
        use_mmap=options.maps_file,
        use_hugepages=options.use_hugepages,
    )
    if options.use_hugepages and not model.huge_page_bytes:
        warnings.warn(f"use_hugepages: no weights are in huge pages: {_why_none()}", RuntimeWarning, stacklevel=3)
    return model


def _why_none() -> str:
    try:
        enabled = THP_ENABLED.read_text()
    except OSError:
        return "this system has no transparent huge pages, as Linux has them; leave it out"
    if "[never]" in enabled:
        return f"the system has them switched off; write 'madvise' to {THP_ENABLED}"
    if "THP_enabled:\t0" in Path("/proc/self/status").read_text():
        return "they are switched off for this process by prctl(PR_SET_THP_DISABLE); start it without"
    return (
        "all weights are on a GPU, or too few for one page, or no page was free; for the last write 1 to "
        "/proc/sys/vm/compact_memory and load again"
    )
