"""How the next token is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loradrop._core import Model, Sampler
from loradrop.checks import check_float, check_int, check_text

MAX_SEED = 2**32 - 2  # llama.cpp takes one more for a random seed


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """llama.cpp's sampling options.

    Attributes
    ----------
    temperature : float
        0 takes the most probable token.
    top_p, min_p, typical_p : float
        Probabilities, 0 to 1; 1, 0 and 1 switch them off.
    top_k : int
        How many of the most probable tokens are considered; 0 or less for all.
    repeat_penalty, frequency_penalty, presence_penalty : float
        Over the last 64 generated tokens; 1, 0 and 0 switch them off.
    grammar : str, optional
        A GBNF grammar with a rule ``root``.
    logit_bias : mapping of int to float, optional
        Token -> what is added to its logit. OpenAI's keys, numbers as str, work too.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    grammar: str | None = None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_float("temperature", self.temperature, 0.0)
        check_float("top_p", self.top_p, 0.0, 1.0)
        check_float("min_p", self.min_p, 0.0, 1.0)
        check_float("typical_p", self.typical_p, 0.0, 1.0)
        check_int("top_k", self.top_k, -(2**31), 2**31 - 1)
        if check_float("repeat_penalty", self.repeat_penalty, 0.0) == 0:
            raise ValueError("repeat_penalty=0: give a number above 0; 1 for no penalty")
        check_float("frequency_penalty", self.frequency_penalty, -math.inf)
        check_float("presence_penalty", self.presence_penalty, -math.inf)
        if self.grammar is not None and not isinstance(self.grammar, str):
            raise TypeError(f"grammar={self.grammar!r}: give a GBNF grammar as str")
        check_text("grammar", self.grammar or "")
        self.biases()

    def biases(self) -> dict[int, float]:
        """Return `logit_bias` with int keys."""
        try:
            return {int(token): float(bias) for token, bias in (self.logit_bias or {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(f"logit_bias={self.logit_bias!r}: give a dict of token to number") from error

    def sampler(self, model: Model, seed: int, tolerance: float = 1.0) -> Sampler:
        """Return a sampler for one request.

        Parameters
        ----------
        tolerance : float
            As in `loradrop.Llama`.

        Raises
        ------
        ValueError
            If the grammar is none, or a biased token is not in the vocabulary.
        """
        biases = self.biases()
        for token in biases:
            check_int("logit_bias: token", token, 0, model.n_vocab - 1)
        return Sampler(
            model,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repeat_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            tolerance=tolerance,
            seed=seed,
            grammar=self.grammar,
            logit_bias=biases or None,
        )


def check_seed(seed: int | None) -> int | None:
    """Return the seed, and None for None and -1, which both ask for a random one."""
    if seed is None:
        return None
    seed = check_int("seed", seed, -1, MAX_SEED)
    return None if seed == -1 else seed
