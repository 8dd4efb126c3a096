"""What closed forms tell of rules and forms of a corrector, for the tables of docs/correctors.md.

    python closed_form.py MODEL.gguf OUT rules    decodes held-out prose with each rule: k = 3, refill, window 64
    python closed_form.py MODEL.gguf OUT rules --layers N ...    the same of anchor-delta at these eight layers alone
    python closed_form.py MODEL.gguf OUT forms    error of a run's output on held-out windows, at 1 to 3 from the anchor

OUT is the folder that recipe.py has filled: texts for `rules`, states too for `forms`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loradrop._core import Model
from loradrop.calibrate.candidate import layer_data, segment_data
from loradrop.calibrate.engine_states import prefill
from loradrop.calibrate.job import Job
from loradrop.calibrate.layers import fit_block
from loradrop.calibrate.options import CalibrateOptions
from loradrop.calibrate.pairs import LoraSteps, Pairs, every_token, norm
from loradrop.calibrate.ridge import Moments, fit_gate, reduced_rank
from loradrop.calibrate.segment import fit_linear
from loradrop.state_store import StateStore, StateWriter, inputs_name
from loradrop.train.decoder import load_decoder
from loradrop.train.metric import fisher_metric
from loradrop.train.texts import load_texts
from loradrop_convert.base import read_base
from loradrop_convert.corrector import SEGMENT, CorrectorData

Array = NDArray[np.floating[Any]]
BLOCK = (10, 17)
SPREAD = range(3, 18, 2)  # as many layers as the block has
K, RANK = 3, 64
RULE_TEXTS, FORM_TEXTS, JUDGE_TEXTS, METRIC_TEXTS = 48, 96, 16, 24
LAYER_RULES = ("previous-state", "anchor-state", "anchor-delta")

FEATURES: dict[str, Callable[[Pairs], Array]] = {
    "n(x), n(y_r), n(x_r)": lambda p: np.concatenate([norm(p.x), norm(p.y_r), norm(p.x_r)], -1),
    "x, y_r, x_r": lambda p: np.concatenate([p.x, p.y_r, p.x_r], -1),
    "n(x), n(x_r)": lambda p: np.concatenate([norm(p.x), norm(p.x_r)], -1),
    "n(x)": lambda p: norm(p.x),
}


def rules(model_path: Path, out: Path, alone: Sequence[int]) -> None:
    """Print what each rule loses when the engine decodes with it, fitted to the engine's own states.

    With layers in `alone`: what anchor-delta loses at these, each fitted by itself.
    """
    model, texts = Model(str(model_path)), load_texts(out / "texts.npz")
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        job = Job(model, read_base(model_path), CalibrateOptions(k=K, rank=RANK), Path(folder), lambda *_: None)
        apart = alone or SPREAD
        layers = sorted({*apart, *(i + 1 for i in apart), *range(BLOCK[0], BLOCK[1] + 2)})
        fitted_to = texts.train[:RULE_TEXTS]
        writer = StateWriter(job.folder / "states", fitted_to, {inputs_name(i): model.n_embd for i in layers})
        prefill(model, fitted_to, layers, writer, n_threads=0, advance=lambda _: None)
        samples = every_token(StateStore(job.folder / "states"), K)
        tried = {f"anchor-delta, layers {', '.join(map(str, apart))}": _apart(samples, apart)}
        if not alone:
            tried = _in_block(job, samples) | tried
        reports = job.measure("", texts.held_out[:JUDGE_TEXTS], [(data, len(apart)) for data in tried.values()])
    print("| rule | NLL rise | KL | top-1 agreement |\n|---|---|---|---|")
    for label, report in zip(tried, reports, strict=True):
        rise, total = report.total.delta_nll, report.total
        print(f"| {label} | {rise.mean:+.3f} ± {rise.margin:.3f} | {total.kl.mean:.3f} | {total.agreement.mean:.3f} |")


def _in_block(job: Job, samples: LoraSteps) -> dict[str, CorrectorData]:
    tried = {
        f"{reuse}, layers 10-17": layer_data(reuse, fit_block(samples, reuse, BLOCK, RANK)) for reuse in LAYER_RULES
    }
    linear = fit_linear(samples, BLOCK, job.segment_fit(hidden=0))
    return tried | {f"{SEGMENT} without hidden layer, layers 10-17": segment_data([BLOCK], [linear])}


def _apart(samples: LoraSteps, layers: Sequence[int]) -> CorrectorData:
    fitted = {layer: fit_block(samples, "anchor-delta", (layer, layer), RANK)[layer] for layer in layers}
    return layer_data("anchor-delta", fitted)


def forms(model_path: Path, out: Path) -> None:
    """Print the error of the linear part in several forms, as a share of that of y = x, in the Fisher metric."""
    stores = {name: StateStore(out / "states" / name) for name in ("train", "held-out")}
    fitted_to = every_token(stores["train"], K).of_texts(FORM_TEXTS)
    judge = every_token(stores["held-out"], K)
    decoder = load_decoder(model_path)
    states = torch.from_numpy(stores["train"].inputs(BLOCK[1] + 1)[:METRIC_TEXTS].astype(np.float32))
    metric = fisher_metric(decoder, BLOCK[1] + 1, states).numpy()
    gate = fit_gate((p.y - p.x, p.y_r - p.x_r) for p in fitted_to.pairs(BLOCK, range(1, K + 1)))
    carries = {"fitted": gate, "1": np.ones_like(gate), "0": np.zeros_like(gate)}
    print("| A sees | carry | rank | 1 | 2 | 3 tokens from the anchor |\n|---|---|---|---|---|---|")
    chosen: Iterable[tuple[str, str, int]] = itertools.chain(
        [(name, "fitted", RANK) for name in FEATURES],
        [("n(x), n(y_r), n(x_r)", carry, RANK) for carry in ("1", "0")],
        [("n(x), n(y_r), n(x_r)", "fitted", rank) for rank in (8, 256, 576)],
    )
    for name, carry, rank in chosen:
        errors = _errors(fitted_to, judge, FEATURES[name], carries[carry], rank, metric)
        print(f"| {name} | {carry} | {rank} | {' | '.join(f'{error:.3f}' for error in errors)} |", flush=True)


def _errors(
    fitted_to: LoraSteps, judge: LoraSteps, features: Callable[[Pairs], Array], carry: Array, rank: int, metric: Array
) -> list[float]:
    moments: Moments | None = None
    for p in fitted_to.pairs(BLOCK, range(1, K + 1)):
        f = features(p)
        moments = moments or Moments(f.shape[-1], len(carry))
        moments.add(f, _left(p, carry))
    assert moments is not None
    a, b = reduced_rank(moments, rank)
    errors = []
    for distance in range(1, K + 1):
        left, whole = 0.0, 0.0
        for p in judge.pairs(BLOCK, [distance]):
            left += float((((_left(p, carry) - features(p) @ a.T @ b.T) @ metric) ** 2).sum())
            whole += float((((p.y - p.x) @ metric) ** 2).sum())
        errors.append(left / whole)
    return errors


def _left(p: Pairs, carry: Array) -> Array:
    return p.y - p.x - carry * (p.y_r - p.x_r)


def main() -> None:
    """Fit, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=("rules", "forms"))
    parser.add_argument("--layers", type=int, nargs="+", default=())
    args = parser.parse_args()
    if args.what == "rules":
        rules(args.model, args.out, args.layers)
    else:
        forms(args.model, args.out)


if __name__ == "__main__":
    main()
