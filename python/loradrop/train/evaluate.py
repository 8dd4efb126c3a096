"""How near the student comes to the full model on texts that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    kl: float
    nll_rise: float
    agreement: float


@torch.no_grad()
def fidelity(student: Student, batches: list[Batch]) -> Fidelity:
    """Measure the student on batches, text by text, so that the logits of one text are all that is held."""
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    decoder = student.decoder
    for batch in batches:
        hidden = simulate(decoder, student.runs(batch.choice), batch.tokens, batch.timeline, batch.frozen)
        refill = batch.timeline.refresh == "refill"
        rows = torch.searchsorted(batch.timeline.lora, batch.scored) if refill else batch.scored
        for ours, theirs, tokens in zip(hidden[:, rows], batch.teacher[:, batch.scored], batch.tokens, strict=True):
            p, q = log_softmax(decoder.logits(theirs).float(), -1), log_softmax(decoder.logits(ours).float(), -1)
            following = tokens[batch.scored + 1][:, None]
            sums[0] += (p.exp() * (p - q)).sum()
            sums[1] += (p.gather(-1, following) - q.gather(-1, following)).sum()
            sums[2] += (p.argmax(-1) == q.argmax(-1)).sum()
            count += len(following)
    return Fidelity(*(sums / count).tolist())
