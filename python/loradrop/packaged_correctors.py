"""Correctors that come with the package, found by the model's own weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from loradrop._core import Model

FOLDER = Path(__file__).parent / "correctors"
FINGERPRINTED = "output_norm.weight"  # small, never quantised, and another one after any further training


@dataclass(frozen=True)
class PackagedCorrector:
    """A corrector in the package.

    Attributes
    ----------
    file_name : str
        In `FOLDER`.
    description : str
        The model that it is for.
    layout_hash : str
        `Model.layout_hash` of the model.
    fingerprint : str
        `weights_fingerprint` of the model's file.
    """

    file_name: str
    description: str
    layout_hash: str
    fingerprint: str


PACKAGED_CORRECTORS = (
    PackagedCorrector(
        file_name="SmolLM2-135M-Instruct.Q4_1.corrector.gguf",
        description="SmolLM2-135M-Instruct, Q4_1",
        layout_hash="63242f38e4a59b01",
        fingerprint="3b87f8e27335e67fc08f159cabfd2d18f205d6c5b225a6f978153552bf01d559",
    ),
)


def packaged_corrector(model: Model) -> Path | None:
    """Return the sidecar that the package holds for a model, or None.

    A file is known by names, types and shapes of its tensors and by the weights of its last norm; what the file is
    called does not matter.
    """
    alike = [known for known in PACKAGED_CORRECTORS if known.layout_hash == model.layout_hash]
    if not alike:
        return None
    fingerprint = weights_fingerprint(model.path)
    return next((FOLDER / known.file_name for known in alike if known.fingerprint == fingerprint), None)


def weights_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the last norm's weights in a model's GGUF file.

    Raises
    ------
    FileNotFoundError, ModelError
        If it is no whole GGUF file of a model, or has no such tensor.
    """
    from loradrop_convert.base import read_model_header  # needed with a known layout alone, and not quick to import

    header = read_model_header(path)
    tensor = next((tensor for tensor in header.tensors if tensor.name == FINGERPRINTED), None)
    if tensor is None:
        raise header.failure(f"it holds no {FINGERPRINTED}")
    with open(path, "rb") as file:
        file.seek(tensor.offset)
        return hashlib.sha256(file.read(tensor.n_bytes)).hexdigest()
