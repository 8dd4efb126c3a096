"""From a model and texts to a trained corrector."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from loradrop.checks import check_choice, check_float, check_int
from loradrop.options import MAX_INT32, REFRESH_POLICIES
from loradrop.progress import StageProgress, counter
from loradrop.recommended import draft_quality, recommended_count
from loradrop.self_text import MAX_SEED
from loradrop.state_store import StateStore
from loradrop.train.batches import Batch, BatchSource, kv_layers_needed, layers_needed
from loradrop.train.decoder import LayeredDecoder, load_decoder
from loradrop.train.evaluate import Fidelity
from loradrop.train.loop import CHECKPOINT, LoopOptions, Training
from loradrop.train.metric import fisher_metric
from loradrop.train.plot import plot_log
from loradrop.train.regress import regress
from loradrop.train.rules import SegmentCorrector
from loradrop.train.start import shape_of_start
from loradrop.train.states import collect
from loradrop.train.student import Shape, Student
from loradrop.train.texts import Texts
from loradrop_convert.base import read_base
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.folder import write_folder
from loradrop_convert.gguf_file import write_sidecar
from loradrop_convert.rules import check_rules

METRIC_TEXTS = 24  # their tokens tell enough of a layer's directions


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What to train, and how.

    Attributes
    ----------
    shape : Shape
        Rule, layers or segments, and sizes of the corrector.
    ks : sequence of int
        Values of k, drawn at random.
    refresh : {"refill", "single"}
        The refresh policy that training simulates.
    kv_window : int, optional
        With refill: newest tokens whose K/V droppable layers keep in the simulation. None keeps all, which is exact
        for texts up to the window's length and much faster, as the exact tokens' states are then stored.
    prompt : (int, int)
        Least and most tokens of prompt.
    state_steps : int
        Steps of the first stage, for ``segment`` alone; 0 leaves it out.
    state_lr : float
        Its highest learning rate.
    loop : LoopOptions
        The second stage.
    batch : int
        Texts in a batch.
    share : float
        Share of the tokens at which KL is taken, (0, 1].
    held_out : int
        Texts of an evaluation.
    store_kv : bool
        Whether to keep K and V of the layers above a segment on disk too: a third less work for each step.
    bf16 : bool
        Whether the frozen model computes in bfloat16, which a CPU without instructions for it makes slower.
    checkpointing : bool
        Whether layers are computed anew for the gradient: less memory, more work.
    seed : int
    """

    shape: Shape
    loop: LoopOptions
    ks: Sequence[int] = (1, 2, 3)
    refresh: str = "refill"
    kv_window: int | None = None
    prompt: tuple[int, int] = (16, 64)
    state_steps: int = 2000
    state_lr: float = 2e-3
    batch: int = 8
    share: float = 0.5
    held_out: int = 16
    store_kv: bool = True
    bf16: bool = False
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("refresh", self.refresh, REFRESH_POLICIES)
        check_float("share", self.share, 1e-6, 1.0)
        check_float("state_lr", self.state_lr, 0.0)
        check_int("batch", self.batch, 1)
        check_int("prompt", self.prompt[0], 1, self.prompt[1])
        check_int("state_steps", self.state_steps, 0)
        check_int("held_out", self.held_out, 1)
        check_int("seed", self.seed, 0, MAX_SEED)
        if self.kv_window is not None:
            check_int("kv_window", self.kv_window, 0, MAX_INT32)
        if not self.ks:
            raise ValueError("ks: there are none; give at least one")
        for k in self.ks:
            check_int("k", k, 1)


def train(
    model: str | os.PathLike[str],
    texts: Texts,
    out: str | os.PathLike[str],
    options: TrainOptions,
    *,
    start: CorrectorData | None = None,
    states: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: StageProgress | None = None,
) -> dict[str, Fidelity]:
    """Train a corrector, and return how near it comes to the full model on held-out texts, by the layers that drop.

    Started by accelerate's launcher it runs on several processes, each with batches of its own.

    Parameters
    ----------
    model : path
        A GGUF file, or a Hugging Face folder.
    texts : Texts
    out : path
        A folder. It gets ``corrector/`` (safetensors), ``corrector.gguf`` (a sidecar, where `model` is a GGUF file),
        ``log.csv``, ``loss.png``, ``options.json``, ``checkpoint.pt``, and the stored states in ``states/``.
    options : TrainOptions
    start : CorrectorData, optional
        Where to begin, for example what `loradrop calibrate` gave: of the rule, layers and sizes of `options`. Its
        alpha holds; what it lacks, a hidden layer for example, begins without effect.
    states : path, optional
        A folder with the full model's states of the same texts, which several trainings may share; ``states`` in
        `out` if there is none.
    resume : bool
        Whether to go on from the checkpoint in `out`, if there is one.
    progress : callable, optional
        Called with what is being done, how much of it is done, and of how much.

    Raises
    ------
    FileExistsError
        If `out` holds a training and `resume` is not given.
    CorrectorError
        If the model has no such layers, or a size does not fit it.
    ValueError
        If the model cannot be taken apart, the texts are shorter than the prompt, or `start` does not suit.
    """
    out, show = Path(out), progress or (lambda *_: None)
    if not resume:
        check_new(out)
    if texts.train.shape[1] <= options.prompt[1] + 1:
        raise ValueError(f"prompt={options.prompt[1]}: texts have {texts.train.shape[1]} tokens; leave some to decode")
    if start is not None:
        options = replace(options, shape=shape_of_start(options.shape, start))
    accelerator = Accelerator()
    decoder = load_decoder(
        model, torch.bfloat16 if options.bf16 else torch.float32, checkpointing=options.checkpointing
    ).to(accelerator.device)
    torch.manual_seed(options.seed)  # the correctors begin at random
    student = Student(decoder, options.shape, None if start is None else start.tensors)
    check_rules(_data(student, options), decoder.n_layer, decoder.n_embd, "shape")
    out.mkdir(parents=True, exist_ok=True)
    (out / "options.json").write_text(json.dumps(asdict(options), indent=1) + "\n")

    precision = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.bf16)
    with accelerator.main_process_first(), precision:
        stores = [
            _states(decoder, options, tokens, Path(states or out / "states") / name, name, show)
            for name, tokens in (("train", texts.train), ("held-out", texts.held_out))
        ]
    source, judge = (_source(decoder, options, store) for store in stores)
    training = Training(student, source, _held_out(judge, options), out, options.loop, accelerator, precision)
    if resume:
        training.resume()
    for index in range(training.n_regressed, len(options.shape.segments) if options.state_steps else 0):
        with precision:
            _first_stage(student, index, stores[0], options, show)
        for parameter in student.correctors.parameters():
            parameter.data = broadcast(parameter.data)  # every process has its own rounding
        training.n_regressed = index + 1
        training.save()
    result = training.run(lambda step, loss: show(f"distilling, loss {loss:.4f}", step, options.loop.steps))
    if accelerator.is_main_process:
        write_result(out, model, student, options, result)
        plot_log(out / "log.csv", out / "loss.png")
    return result


def check_new(out: Path) -> None:
    """Check, before any work, that a folder holds no training.

    Raises
    ------
    FileExistsError
        If it holds one.
    """
    if (out / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training; go on with it by --resume, or give another folder")


def write_result(
    out: Path, model: str | os.PathLike[str], student: Student, options: TrainOptions, result: Mapping[str, Fidelity]
) -> None:
    """Write the corrector as a folder, and as a sidecar where the model is a GGUF file."""
    counts = [last - first + 1 for first, last in options.shape.segments] or [len(options.shape.layers)]
    losses: dict[int, float] = {}
    for count, found in zip(counts, result.values(), strict=True):
        losses.setdefault(count, found.nll_rise)  # of runs as long as each other the engine takes the first
    n_layer = student.decoder.n_layer
    data = replace(
        _data(student, options),
        rho=recommended_count(losses) / n_layer,
        k=max(options.ks),
        quality={
            "trained on": f"{options.refresh}, k in {list(options.ks)}",
            "measured on": "texts set apart from the training's",
            "points": [
                {
                    "rho": round(count / n_layer, 4),
                    "k": max(options.ks),
                    "refresh": options.refresh,
                    "layers": dropped,
                    "delta_nll": round(found.nll_rise, 4),
                    "kl": round(found.kl, 4),
                    "agreement": round(found.agreement, 4),
                    **draft_quality(found.agreement_by_distance),
                }
                for count, (dropped, found) in zip(counts, result.items(), strict=True)
            ],
        },
    )
    base = read_base(model) if Path(model).is_file() else None
    write_folder(out / "corrector", data, base, force=True)
    if base is not None:
        write_sidecar(out / "corrector.gguf", data, base, type="f16", force=True)


def _data(student: Student, options: TrainOptions) -> CorrectorData:
    shape = options.shape
    return CorrectorData(
        reuse=shape.reuse,
        rank=shape.rank,
        alpha=shape.alpha,
        tensors=cast(Any, student.tensors()),
        layers=list(shape.layers),
        segments=[(first, last) for first, last in shape.segments],
        refresh=options.refresh,
    )


def _states(
    decoder: LayeredDecoder, options: TrainOptions, tokens: Any, folder: Path, name: str, show: StageProgress
) -> StateStore:
    advance = counter(partial(show, f"states of the full model, {name}"), len(tokens))
    layers = layers_needed(options.shape, decoder.n_layer)
    kv_layers = kv_layers_needed(options.shape, decoder.n_layer) if options.store_kv else ()
    return collect(decoder, tokens, layers, folder, kv_layers=kv_layers, batch=options.batch, advance=advance)


def _source(decoder: LayeredDecoder, options: TrainOptions, store: StateStore) -> BatchSource:
    return BatchSource(
        store=store,
        shape=options.shape,
        n_layer=decoder.n_layer,
        n_head_kv=decoder.n_head_kv,
        ks=options.ks,
        refresh=options.refresh,
        kv_window=2**30 if options.kv_window is None else options.kv_window,
        prompt=options.prompt,
        size=options.batch,
        share=options.share,
        device=decoder.device,
        seed=options.seed,
    )


def _held_out(source: BatchSource, options: TrainOptions) -> dict[str, list[Batch]]:
    """Return what to evaluate: every segment, or the most layers that can drop."""
    shape, k = options.shape, max(options.ks)
    if not shape.segments:
        name = ", ".join(map(str, sorted(shape.layers)))
        return {name: source.in_order(options.held_out, len(shape.layers), k)}
    return {
        f"{first}-{last}": source.in_order(options.held_out, choice, k)
        for choice, (first, last) in enumerate(shape.segments)
    }


def _first_stage(student: Student, index: int, store: StateStore, options: TrainOptions, show: StageProgress) -> None:
    run = options.shape.segments[index]
    states = torch.from_numpy(store.inputs(run[1] + 1)[:METRIC_TEXTS].astype("float32"))
    metric = fisher_metric(student.decoder, run[1] + 1, states.to(student.decoder.device), options.seed)
    step = 0

    def advance(loss: float) -> None:
        nonlocal step
        step += 1
        show(f"states of layers {run[0]} to {run[1]}, loss {loss:.4f}", step, options.state_steps)

    regress(
        cast(SegmentCorrector, student.correctors[index]),
        store,
        run,
        metric,
        distances=range(1, max(options.ks) + 1),
        steps=options.state_steps,
        batch=options.batch,
        lr=options.state_lr,
        seed=options.seed,
        advance=advance,
    )
