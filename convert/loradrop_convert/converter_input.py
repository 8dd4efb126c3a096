"""A checkpoint as llama.cpp's converter is to read it: itself, or a copy with other weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loradrop._core import ModelError
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.merge_adapter import plan_merge
from loradrop_convert.peft_adapter import PeftAdapter
from loradrop_convert.reference_base import write_reference_base
from loradrop_convert.reference_checkpoint import is_reference_checkpoint


@contextmanager
def converter_input(
    checkpoint: Path, adapters: Sequence[tuple[PeftAdapter, float]], work: Path, progress: Progress | None
) -> Iterator[Path]:
    """Give the folder that the converter is to read, a copy in `work` where weights change.

    An error of the block that names a copy, which is gone by then, names the checkpoint instead.
    """
    name = checkpoint.absolute().name  # of which the converter makes the model's
    copies = [work / part / name for part in ("base", "merged")]
    try:
        yield _written(checkpoint, adapters, copies, progress)
    except ModelError as error:
        said = str(error)
        for copy in copies:
            said = said.replace(os.fspath(copy), os.fspath(checkpoint))
        raise ModelError(said) from error


def _written(
    checkpoint: Path, adapters: Sequence[tuple[PeftAdapter, float]], copies: list[Path], progress: Progress | None
) -> Path:
    base, merged = copies
    if is_reference_checkpoint(checkpoint):
        base.parent.mkdir()
        write_reference_base(checkpoint, base, progress)
        checkpoint = base
    if not adapters:
        return checkpoint
    merged.parent.mkdir()
    plan_merge(checkpoint, adapters).write(merged, progress)
    return merged
