"""The place of the largest block, and the rule: what is best when the engine decodes with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loradrop.calibrate.candidate import layer_data, segment_data
from loradrop.calibrate.job import Job
from loradrop.calibrate.layers import fit_block
from loradrop.calibrate.pairs import LoraSteps, every_token, spread
from loradrop.calibrate.segment import fit_linear
from loradrop.progress import stage_counter
from loradrop.state_store import StateStore, Tokens
from loradrop_convert.corrector import REUSE_RULES, SEGMENT, CorrectorData

FIT_STEPS = 12_000  # enough to rank candidates
JUDGE_TEXTS = 8
JUDGE_TOKENS = 128


def best_place(job: Job, store: StateStore, starts: Sequence[int], length: int, judged: Tokens) -> int:
    """Return the first layer, of those given, at which a block loses least with a linear fit.

    With ``refresh="single"`` too the fits see the full model's anchors: they rank places alike, and each place would
    cost a run of the texts of its own.
    """
    samples = _fewer(every_token(store, job.options.k))
    advance = stage_counter(job.show, "places", len(starts))
    tried = []
    for start in starts:
        tried.append(_linear(job, samples, (start, start + length - 1)))
        advance(1)
    return starts[_best(job, "decoding with places", judged, tried, length)]


def best_rule(job: Job, samples: LoraSteps, block: tuple[int, int], judged: Tokens) -> str:
    """Return the rule with which a block loses least; a segment is tried without its hidden layer."""
    samples = _fewer(samples)
    advance = stage_counter(job.show, "rules", len(REUSE_RULES))
    tried = {}
    for reuse in REUSE_RULES:
        if reuse == SEGMENT:
            tried[reuse] = _linear(job, samples, block)
        else:
            tried[reuse] = layer_data(reuse, fit_block(samples, reuse, block, job.rank))
        advance(1)
    best = _best(job, "decoding with rules", judged, list(tried.values()), block[1] - block[0] + 1)
    return list(tried)[best]


def _fewer(samples: LoraSteps) -> LoraSteps:
    return samples.of_texts(-(-FIT_STEPS // (samples.k * len(samples.anchors))))


def _linear(job: Job, samples: LoraSteps, run: tuple[int, int]) -> CorrectorData:
    return segment_data([run], [fit_linear(samples, run, job.segment_fit(hidden=0))])


def _best(job: Job, what: str, judged: Tokens, tried: Sequence[CorrectorData], n_dropped: int) -> int:
    windows = judged[spread(len(judged), JUDGE_TEXTS), :JUDGE_TOKENS]
    reports = job.measure(what, windows, [(corrector, n_dropped) for corrector in tried])
    return int(np.argmin([report.total.kl.mean for report in reports]))
