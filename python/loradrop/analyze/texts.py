"""Which windows are decoded, and which ones correctors are fitted to."""

from __future__ import annotations

from loradrop.state_store import Tokens


def split_windows(texts: Tokens, n_windows: int, n_fit: int) -> tuple[Tokens, Tokens | None]:
    """Return the windows to decode and those to fit to; where there are too few, both get their share.

    Parameters
    ----------
    texts : int32 array [n, n_tokens]
        Windows in any order.
    n_windows, n_fit : int
        How many are wanted; n_fit = 0 fits nothing, and the second result is None.

    Raises
    ------
    ValueError
        If there are not enough for one of each.
    """
    if not n_fit:
        return texts[:n_windows], None
    if len(texts) < 2:
        raise ValueError(
            f"{len(texts)} window of text: one is needed to measure and one to fit to; give more text, or bare"
        )
    n = min(n_windows, max(1, len(texts) * n_windows // (n_windows + n_fit)))
    return texts[:n], texts[n : n + n_fit]
