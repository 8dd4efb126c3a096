"""A line on what a corrector promises exact decoding on this machine."""

from __future__ import annotations

from pathlib import Path


def exact_advice(model_path: Path, corrector_path: Path) -> str:
    """Return which rho suits ``refresh="verify"`` best, and how quick it should be; empty where the file tells nothing.

    Parameters
    ----------
    model_path, corrector_path : path
        A GGUF file, and a sidecar for it.
    """
    from loradrop._core import Corrector, Model
    from loradrop.recommended import best_exact_count

    model = Model(str(model_path))
    corrector = Corrector.load(str(corrector_path), model)
    best = None if corrector is None else best_exact_count(model, corrector)
    if best is None:
        return ""
    n, speed = best
    text = f"verify: recommended rho {n / model.n_layer:.3f}, about {speed:.2f} times the full model here"
    return text if speed > 1 else f"{text}: it does not pay; decode in full"
