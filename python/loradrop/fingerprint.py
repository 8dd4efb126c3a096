"""What tells a model from others of its layout."""

from __future__ import annotations

import hashlib

from loradrop._core import Model

FINGERPRINTED = "output_norm.weight"  # small, never quantised, and another one after any further training


def fingerprint(model: Model) -> str:
    """Return the SHA-256 of the weights of a model's last norm, in hexadecimal digits; empty where it has none."""
    try:
        weights = model.tensor_bytes(FINGERPRINTED)
    except IndexError:
        return ""
    return hashlib.sha256(weights).hexdigest()
