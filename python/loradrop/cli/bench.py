"""``loradrop bench``: how quickly a model decodes with LoRA-Drop, and how quickly it could."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from loradrop.bench import batches, bench, profile
from loradrop.bench.batches import CONTEXTS
from loradrop.bench.batches import ROUNDS as BATCH_ROUNDS
from loradrop.bench.run import ROUNDS
from loradrop.cli.batches_table import print_batches
from loradrop.cli.bench_table import print_profiles, print_report
from loradrop.cli.options import HUGE_PAGES_OPTION, MODEL_HELP
from loradrop.cli.points import chosen_points, point_options
from loradrop.cli.progress import pull_progress, token_progress
from loradrop.models import resolve_model
from loradrop.options import FLASH_ATTN, KV_TYPES

_OF_BATCHES = {
    "model",
    "as_batches",
    "context",
    "rounds",
    "threads",
    "flash_attn",
    "type_k",
    "type_v",
    "use_hugepages",
    "as_json",
}


@click.command(
    name="bench",
    short_help="Measure how quickly a model decodes with LoRA-Drop.",
    help=f"""Decode the same tokens in full and at each point, in turn and in rounds, and show how quickly.

    Shown are tokens/s, the speed-up over the full model (within each round), a step's milliseconds, the bytes of the
    K/V cache, and the ceiling: the speed-up if all that took time were reading the weights that a step needs.

    With --batches: how long batches of a few tokens take beside one token, with llama.cpp's CPU kernels and with ours.

    {MODEL_HELP}""",
)
@click.argument("model")
@point_options
@click.option("--prompt", type=int, default=128, show_default=True, help="Tokens of the prompt.")
@click.option("--tokens", type=int, default=64, show_default=True, help="Tokens decoded in each round.")
@click.option(
    "--rounds",
    type=int,
    help=f"Rounds, after one that does not count. [default: {ROUNDS}; with --batches {BATCH_ROUNDS}]",
)
@click.option("--threads", type=int, help="Threads of the decode. [default: chosen by the core]")
@click.option("--n-gpu-layers", type=int, default=0, show_default=True, help="Layers on the GPU; -1 for all.")
@click.option("--flash-attn", type=click.Choice(FLASH_ATTN), default="auto", show_default=True)
@click.option("--type-k", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Of the cache's keys.")
@click.option("--type-v", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="And of its values.")
@HUGE_PAGES_OPTION
@click.option("--profile", "as_profile", is_flag=True, help="Time each operation instead, in one round.")
@click.option("--batches", "as_batches", is_flag=True, help="Time batches of a few tokens instead.")
@click.option(
    "--context",
    type=int,
    multiple=True,
    default=CONTEXTS,
    show_default=True,
    help="With --batches: tokens before the batch. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every step's seconds.")
def command(
    model: str,
    corrector: Path | None,
    allow_uncorrected: bool,
    prompt: int,
    tokens: int,
    rounds: int | None,
    threads: int | None,
    n_gpu_layers: int,
    flash_attn: str,
    type_k: str,
    type_v: str,
    use_hugepages: bool,
    as_profile: bool,
    as_batches: bool,
    context: tuple[int, ...],
    as_json: bool,
    **points: Any,
) -> None:
    """Run the command."""
    _check_options(as_batches)
    if rounds is None:
        rounds = BATCH_ROUNDS if as_batches else ROUNDS
    with pull_progress() as pulling:
        path = resolve_model(model, pulling)
    with token_progress("decoding") as decoding:
        options: dict[str, Any] = {
            "n_threads": threads,
            "flash_attn": flash_attn,
            "type_k": type_k,
            "type_v": type_v,
            "use_hugepages": use_hugepages,
            "progress": decoding,
        }
        of_points: dict[str, Any] = {
            "corrector": corrector,
            "allow_uncorrected": allow_uncorrected,
            "prompt": prompt,
            "tokens": tokens,
            "n_gpu_layers": n_gpu_layers,
        }
        if as_batches:
            batch_report = batches(path, contexts=context, n_rounds=rounds, **options)
        elif as_profile:
            profiles = profile(path, chosen_points(**points), **of_points, **options)
        else:
            report = bench(path, chosen_points(**points), n_rounds=rounds, **of_points, **options)
    if as_batches:
        _show(batch_report.to_dict(), as_json, lambda: print_batches(batch_report))
    elif as_profile:
        _show([one.to_dict() for one in profiles], as_json, lambda: print_profiles(profiles))
    else:
        _show(report.to_dict(), as_json, lambda: print_report(report))


def _check_options(as_batches: bool) -> None:
    """Refuse options that mean nothing to what is measured."""
    ctx = click.get_current_context()
    given = [
        option
        for option in ctx.command.params
        if option.name and ctx.get_parameter_source(option.name) == ParameterSource.COMMANDLINE
    ]
    if as_batches:
        idle = [option.opts[0] for option in given if option.name not in _OF_BATCHES]
        if idle:
            raise click.UsageError(f"--batches measures the full model on the CPU; leave out {', '.join(idle)}")
    elif any(option.name == "context" for option in given):
        raise click.UsageError("--context says where to measure batches; give --batches too")


def _show(figures: Any, as_json: bool, print_table: Callable[[], None]) -> None:
    if as_json:
        click.echo(json.dumps(figures))
    else:
        print_table()
