"""How much faster decoding can get at most, if all that counts is reading the weights."""

from __future__ import annotations

from loradrop.bench.step_bytes import StepBytes


def single_ceiling(n_bytes: StepBytes, k: int) -> float:
    """Return the most that ``refresh="single"`` can speed a decode up.

    k + 1 full steps over one refresh step and k LoRA steps, each as long as its bytes take:
    B_full / ((B_refresh + k B_lora) / (k + 1)).

    Parameters
    ----------
    k : int
        LoRA steps between two refresh steps.
    """
    return (k + 1) * n_bytes.full / (n_bytes.refresh + k * n_bytes.lora)


def refill_ceiling(n_bytes: StepBytes, k: int, full_seconds: float, batch_seconds: float) -> float:
    """Return the most that ``refresh="refill"`` can speed a decode up.

    A refresh runs k + 1 tokens, whose time is not that of their bytes alone, and so has to be measured:
    (k + 1) t_full / (t_batch + t_full (k B_lora + B_refresh - B_full) / B_full).

    Parameters
    ----------
    full_seconds : float
        t_full, of the full model's step.
    batch_seconds : float
        t_batch, of the full model's batch of k + 1 tokens.
    """
    others = k * n_bytes.lora + n_bytes.refresh - n_bytes.full
    return (k + 1) * full_seconds / (batch_seconds + full_seconds * others / n_bytes.full)


def verify_ceiling(
    n_bytes: StepBytes,
    n_plain: int,
    n_rounds: int,
    n_drafts: int,
    n_accepted: int,
    full_seconds: float,
    batch_seconds: float,
) -> float:
    """Return the most that ``refresh="verify"`` can speed a decode up, with as many drafts right as were.

    Of all tokens those of accepted drafts cost nothing but the drafts and the checks:
    (n_plain + n_rounds + n_accepted) t_full / (n_plain t_full + n_rounds t_batch + n_drafts t_full B_lora / B_full).

    Parameters
    ----------
    n_plain, n_rounds, n_drafts, n_accepted : int
        Full steps that have checked nothing, those that have checked drafts, LoRA steps, and drafts that were right.
    full_seconds, batch_seconds : float
        As in `refill_ceiling`.
    """
    tokens = n_plain + n_rounds + n_accepted
    drafting = n_drafts * full_seconds * n_bytes.lora / n_bytes.full
    return tokens * full_seconds / (n_plain * full_seconds + n_rounds * batch_seconds + drafting)
