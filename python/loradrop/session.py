"""The one sequence of a context, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence

from loradrop._core import Context, ContextFullError
from loradrop.turns import Turns


class Session:
    """The tokens in a context, and whose turn it is to use it.

    Parameters
    ----------
    context : Context
        A context of one sequence.
    n_ctx : int
        The most tokens that the context may hold.
    n_swa : int
        Tokens of the model's sliding windows; 0 where it has none.

    Attributes
    ----------
    turns : Turns
        One is held around everything that touches the context.
    process : int
        The process that has made it.
    """

    def __init__(self, context: Context, n_ctx: int, n_swa: int = 0) -> None:
        self.context = context
        self.n_ctx = n_ctx
        self.n_swa = n_swa
        self.turns = Turns()
        self.process = os.getpid()
        self._tokens: list[int] = []

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the context, also after a decode that was interrupted."""
        return self.context.seq_pos_max(0) + 1

    @property
    def tokens(self) -> list[int]:
        """The tokens in the context."""
        return self._tokens[: self.n_tokens]

    def clear(self) -> None:
        """Forget all tokens."""
        self.context.clear()
        self._tokens.clear()

    def keep_common(self, prompt: Sequence[int]) -> int:
        """Forget all tokens but those that a prefill of the prompt would leave too; return how many these are.

        They are the prompt's first ones, as far as the context holds them exactly (`Context.exact_tokens`) and their
        windows are still there; fewer than all of either, so that there is one to decode, which counts as prompt.
        """
        held = self.tokens
        n = next((i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), min(len(held), len(prompt)))
        n = min(n, self.context.exact_tokens(), len(held) - 1, len(prompt) - 1)
        if n <= 0 or self.context.seq_pos_min(0) > max(0, n - self.n_swa) or not self.context.seq_rm(0, n):
            self.clear()
            return 0
        del self._tokens[n:]
        self.context.count_as_prompt()
        return n

    def save_state(self) -> tuple[list[int], bytes]:
        """Return the tokens and all that the context holds."""
        return self.tokens, self.context.save_state()

    def load_state(self, tokens: Sequence[int], state: bytes) -> None:
        """Restore what `save_state` has returned.

        Raises
        ------
        ValueError
            If the state does not fit the context, which is empty then.
        """
        self.clear()
        self.context.load_state(state)
        if self.n_tokens != len(tokens) or len(tokens) > self.n_ctx:
            n_held = self.n_tokens
            self.clear()
            raise ValueError(f"state: {len(tokens)} tokens for {n_held} that it holds, of n_ctx={self.n_ctx}")
        self._tokens = list(tokens)

    def decode(self, tokens: Sequence[int]) -> None:
        """Append tokens to the context; the logits are the last one's.

        A single token after one whose logits were asked for counts as a generated one, and may
        take a LoRA step. Here that is the token after each call.

        Parameters
        ----------
        tokens : sequence of int
            At least one token, decoded in batches of the context's n_batch.

        Raises
        ------
        ContextFullError
            If they do not fit; none of them is decoded then.
        """
        n_tokens, n_batch = self.n_tokens, self.context.n_batch
        if n_tokens + len(tokens) > self.n_ctx:
            raise ContextFullError(
                f"{len(tokens)} more tokens do not fit: the context holds {n_tokens} of "
                f"n_ctx={self.n_ctx}; make it larger, or call reset()"
            )
        self._tokens[n_tokens:] = tokens
        for start in range(0, len(tokens), n_batch):
            chunk = tokens[start : start + n_batch]
            outputs = [False] * len(chunk)
            outputs[-1] = start + len(chunk) == len(tokens)
            self.context.decode(chunk, outputs=outputs)
