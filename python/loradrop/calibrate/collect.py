"""One pass of the full model over all texts: its states for those to fit to, and the texts that only judge."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from loradrop.calibrate.engine_states import prefill
from loradrop.calibrate.job import Job
from loradrop.progress import stage_counter
from loradrop.self_text import write_texts
from loradrop.state_store import States, StateStore, StateWriter, Tokens, inputs_name

JUDGED = 8  # one text in so many only judges
DISK_SHARE = 0.5  # of what is free; others write there too


def collect(job: Job, texts: Tokens, n_written: int, layers: Collection[int]) -> tuple[StateStore, Tokens]:
    """Return the states of the texts to fit to, and the texts that only judge.

    The states of what the model writes are those of the passes that write it.

    Parameters
    ----------
    job : Job
    texts : int32 array [n, n_tokens]
        What is read.
    n_written : int
        How many more the model writes, of as many tokens.
    layers : collection of int
        Whose inputs are kept, 0 to n_layer - 1.

    Returns
    -------
    store : StateStore
    judged : int32 array [n_judged, n_tokens]

    Raises
    ------
    ValueError
        If a state does not fit into float16.
    """
    read, judged = texts[np.arange(len(texts)) % JUDGED != 0], texts[::JUDGED]
    # texts that are written come in no order, so that the first of them may judge
    n_judged = n_to_judge(len(texts) + n_written) - len(judged)
    layers = sorted(layers)
    to_write = np.zeros((n_written - n_judged, texts.shape[1]), np.int32)
    widths = {inputs_name(layer): job.model.n_embd for layer in layers}
    writer = StateWriter(job.folder / "states", np.concatenate([read, to_write]), widths)
    if len(read):
        advance = stage_counter(job.show, "states of the full model", len(read))
        prefill(job.model, read, layers, writer, n_threads=job.options.n_threads, advance=advance)
    if n_written:
        judged = np.concatenate([judged, _write(job, n_written, texts.shape[1], n_judged, layers, writer)])
    return StateStore(job.folder / "states"), judged


def n_to_judge(n_texts: int) -> int:
    """Return how many of the texts only judge."""
    return -(-n_texts // JUDGED)


def check_room(folder: str | os.PathLike[str], n_bytes: int) -> None:
    """Check that a folder's disk has room for states.

    Raises
    ------
    ValueError
        If they would take more than half of what is free.
    """
    free = shutil.disk_usage(Path(folder)).free
    if n_bytes > DISK_SHARE * free:
        raise ValueError(
            f"{os.fspath(folder)}: the states take {n_bytes} bytes and may take half of the {free} that are free; "
            "take fewer windows, or set TMPDIR to a folder on a larger disk"
        )


def _write(job: Job, n_written: int, n_tokens: int, n_judged: int, layers: list[int], writer: StateWriter) -> Tokens:
    """Let the model write, keep the states of all but the first `n_judged` texts, and return these."""
    judged: list[Tokens] = []

    def keep(texts: Tokens, states: dict[int, States]) -> None:
        n = min(len(texts), n_judged - sum(map(len, judged)))
        judged.append(texts[:n])
        if n < len(texts):
            writer.append({inputs_name(layer): states[layer - 1][n:] for layer in layers}, texts[n:])

    write_texts(
        job.model,
        n_written,
        n_tokens,
        seed=job.options.seed,
        n_threads=job.options.n_threads,
        advance=stage_counter(job.show, "texts written by the model", n_written),
        capture=[layer - 1 for layer in layers],
        observe=keep,
    )
    return np.concatenate(judged)
