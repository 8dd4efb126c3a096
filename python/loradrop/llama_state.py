"""What a context holds, to go on from it later."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaState:
    """A state of `loradrop.Llama`; it can be pickled.

    Attributes
    ----------
    input_ids : tuple of int
        The tokens in the context.
    llama_state : bytes
        All that the context holds of them: K/V caches, the schedule and its reuse state.
    """

    input_ids: tuple[int, ...]
    llama_state: bytes

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the context."""
        return len(self.input_ids)
