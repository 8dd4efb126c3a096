"""How near the student comes to the full model on texts that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from torch.nn.functional import log_softmax

from loradrop.train.batches import Batch
from loradrop.train.simulate import simulate
from loradrop.train.student import Student


@dataclass(frozen=True)
class Fidelity:
    """Means over the scored tokens.

    Attributes
    ----------
    kl : float
        KL(full model || student) of the next token, nats.
    nll_rise : float
        NLL of the text's next token, above the full model's, nats.
    agreement : float
        Share of tokens at which both find the same next token most probable.
    agreement_by_distance : tuple of float
        The same of the first, second, ... LoRA step after a token that ran in full; empty with ``single``, whose LoRA
        steps begin from a context that is not exact.
    """

    kl: float
    nll_rise: float
    agreement: float
    agreement_by_distance: tuple[float, ...] = ()


@torch.no_grad()
def fidelity(student: Student, batches: list[Batch]) -> Fidelity:
    """Measure the student on batches, text by text, so that the logits of one text are all that is held."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    agreed: dict[int, list[float]] = {}
    decoder = student.decoder
    refill = all(batch.timeline.refresh == "refill" for batch in batches)
    for batch in batches:
        hidden = simulate(decoder, student.runs(batch.choice), batch.tokens, batch.timeline, batch.frozen)
        rows = torch.searchsorted(batch.timeline.lora, batch.scored) if refill else batch.scored
        for ours, theirs, tokens in zip(hidden[:, rows], batch.teacher[:, batch.scored], batch.tokens, strict=True):
            p, q = log_softmax(decoder.logits(theirs).float(), -1), log_softmax(decoder.logits(ours).float(), -1)
            following = tokens[batch.scored + 1][:, None]
            sums[0] += (p.exp() * (p - q)).sum()
            sums[1] += (p.gather(-1, following) - q.gather(-1, following)).sum()
            agrees = (p.argmax(-1) == q.argmax(-1)).double()
            sums[2] += agrees.sum()
            count += len(following)
            for distance, one in zip(batch.timeline.distance[batch.scored].tolist(), agrees.tolist(), strict=True):
                agreed.setdefault(distance, []).append(one)
    by_distance = tuple(fmean(agreed[distance]) for distance in sorted(agreed)) if refill else ()
    kl, nll_rise, agreement = (sums / count).tolist()
    return Fidelity(kl, nll_rise, agreement, by_distance)
