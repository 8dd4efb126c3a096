"""Correctors that come with the package, found by the model's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loradrop._core import Model
from loradrop.fingerprint import fingerprint

FOLDER = Path(__file__).parent / "correctors"


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
    refresh : {"single", "refill"}
        The refresh policy that it was trained for.
    fingerprint : str
        As `fingerprint` gives it.
    """

    file_name: str
    description: str
    layout_hash: str
    refresh: str
    fingerprint: str


_SMOLLM2 = {
    "description": "SmolLM2-135M-Instruct, Q4_1",
    "layout_hash": "63242f38e4a59b01",
    "fingerprint": "3b87f8e27335e67fc08f159cabfd2d18f205d6c5b225a6f978153552bf01d559",
}

# Of several for one model the first is taken where no policy is asked for.
PACKAGED_CORRECTORS = (
    PackagedCorrector(file_name="SmolLM2-135M-Instruct.Q4_1.corrector.gguf", refresh="refill", **_SMOLLM2),
    PackagedCorrector(file_name="SmolLM2-135M-Instruct.Q4_1.single.corrector.gguf", refresh="single", **_SMOLLM2),
)


def packaged_corrector(model: Model, refresh: str | None = None) -> Path | None:
    """Return the sidecar that the package holds for a model, or None.

    A file is known by names, types and shapes of its tensors and by the weights of its last norm; what the file is
    called does not matter.

    Parameters
    ----------
    model : Model
    refresh : {"single", "refill"}, optional
        The policy that it is to be used with; what was trained for another is better than nothing.
    """
    alike = [known for known in PACKAGED_CORRECTORS if known.layout_hash == model.layout_hash]
    if not alike:
        return None
    ours = fingerprint(model)
    same = [known for known in alike if known.fingerprint == ours]
    best = sorted(same, key=lambda known: refresh not in (None, known.refresh))
    return FOLDER / best[0].file_name if best else None
