"""``loradrop calibrate``: a corrector in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loradrop.checks import check_int
from loradrop.cli.exact_advice import exact_advice
from loradrop.cli.options import MODEL_HELP
from loradrop.cli.progress import pull_progress, stage_progress
from loradrop.cli.ranges import float_list
from loradrop.models import resolve_model
from loradrop_convert.corrector import CORRECTED_POLICIES, REUSE_RULES


@click.command(
    name="calibrate",
    short_help="Fit a corrector in minutes.",
    help=f"""Fit a corrector to the states that the engine gives for some text, and write it as a sidecar.

    Places and rules are tried in the engine, on one window in eight; the best is fitted to the rest: linear parts in
    closed form, a segment's hidden layer by a minute of regression. It needs nothing but this package; `loradrop train`
    goes further from there.

    {MODEL_HELP}""",
)
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The sidecar to write.")
@click.option("--text", "paths", type=click.Path(path_type=Path), multiple=True, help="A file of text, UTF-8.")
@click.option("--self", "write", is_flag=True, help="Let the model write the text (also the default without --text).")
@click.option("--windows", type=int, default=112, show_default=True, help="Windows of text to take or to write.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of a window.")
@click.option(
    "--rho",
    "rhos",
    type=float_list,
    metavar="X,X,...",
    default="0.25,0.5",
    show_default=True,
    help="Shares of the layers.",
)
@click.option("--k", type=int, default=3, show_default=True, help="LoRA steps between two refresh steps.")
@click.option("--rank", type=int, default=64, show_default=True, help="Of the linear parts.")
@click.option("--hidden", type=int, default=768, show_default=True, help="Width of a segment's hidden layer.")
@click.option("--reuse", type=click.Choice(REUSE_RULES), help="The rule. [default: what measures best]")
@click.option("--first", type=int, help="First layer of the largest block. [default: what measures best]")
@click.option("--refresh", type=click.Choice(CORRECTED_POLICIES), default="refill", show_default=True)
@click.option("--minutes", type=float, default=1.0, show_default=True, help="Most time of each segment's regression.")
@click.option("--type", "storage", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True)
@click.option("--threads", type=int, help="Threads of the engine. [default: chosen by the core]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def command(
    model: str,
    output: Path,
    paths: tuple[Path, ...],
    write: bool,
    windows: int,
    window: int,
    storage: Any,
    threads: int | None,
    seed: int,
    force: bool,
    minutes: float,
    **options: Any,
) -> None:
    """Run the command."""
    from loradrop._core import Model
    from loradrop.calibrate.calibrate import calibrate
    from loradrop.calibrate.options import CalibrateOptions
    from loradrop.calibrate.texts import read_windows
    from loradrop_convert.base import read_base
    from loradrop_convert.gguf_file import write_sidecar
    from loradrop_convert.output import check_outputs

    check_outputs([output], force, inputs=[model, *paths])
    check_int("window", window, 1)
    chosen = CalibrateOptions(seconds=60 * minutes, n_threads=threads or 0, seed=seed, **options)
    with pull_progress() as pulling:
        path = resolve_model(model, pulling)
    check_outputs([output], force, inputs=[path])  # it may have been given by name
    with stage_progress() as show:
        texts, n_written = read_windows(Model(str(path)), paths, write or not paths, windows, window)
        corrector, reports = calibrate(path, texts, chosen, n_written=n_written, progress=show)
    base = read_base(path)
    write_sidecar(output, corrector, base, type=storage, force=force)
    for report in reports:
        total, per_round = report.total, report.tokens_per_round
        click.echo(
            f"rho {len(report.dropped_layers) / base.n_layer:.3f}, k {report.point.k}, "
            f"{report.point.refresh}: NLL +{total.delta_nll.mean:.3f}, KL {total.kl.mean:.3f}, "
            f"agreement {total.agreement.mean:.3f}"
            + ("" if per_round is None else f"; verify: {per_round:.2f} tokens a round")
        )
    click.echo(f"{corrector.reuse}, recommended rho {corrector.rho:.3f}, k {corrector.k}: {output}")
    if advice := exact_advice(path, output):
        click.echo(advice)
