"""``loradrop analyze``: what each layer does, and what it costs to drop it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from loradrop.checks import check_int
from loradrop.cli.options import MODEL_HELP
from loradrop.cli.progress import pull_progress, stage_progress
from loradrop.cli.ranges import layer_range
from loradrop.models import resolve_model
from loradrop.options import DEFAULT_REFRESH
from loradrop_convert.corrector import CORRECTED_POLICIES


@click.command(
    name="analyze",
    short_help="Show what each layer does and propose which to drop.",
    help=f"""Show how redundant each layer is and what dropping it costs, and propose the order of lora_drop.layers.

    For each layer with input x and output y: the mean cosine of neighbouring tokens' y, that of neighbouring y - x,
    that of x and y, and by how much the NLL of a token rises, in nats with its 95 % interval, when this layer alone
    drops on the schedule. For the last a quick corrector stands in for the layer. The order starts with the least
    harmful layer and goes on with the one that hurts least together with those before it.

    The cost is the number of points that are decoded, each over all windows: one for each layer that may drop, then
    up to --width for each further layer of the order. That is 82 for a model of 30 layers, and 26 with --greedy off.
    Up to 8 points are decoded at once, with the full model beside them.

    {MODEL_HELP}""",
)
@click.argument("model")
@click.option("--text", "paths", type=click.Path(path_type=Path), multiple=True, help="A file of text, UTF-8.")
@click.option("--self", "write", is_flag=True, help="Let the model write the text (also the default without --text).")
@click.option("--windows", type=int, default=16, show_default=True, help="Windows to decode.")
@click.option("--fit-windows", type=int, default=32, show_default=True, help="Further windows to fit correctors to.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of a window.")
@click.option("--prompt", type=int, default=64, show_default=True, help="Tokens of a window's prompt.")
@click.option("--k", type=int, default=3, show_default=True, help="LoRA steps between two refresh steps.")
@click.option("--refresh", type=click.Choice(CORRECTED_POLICIES), default=DEFAULT_REFRESH, show_default=True)
@click.option(
    "--kv-window", type=int, default=64, show_default=True, help="With refill: K/V that droppable layers keep."
)
@click.option(
    "--layers",
    type=layer_range,
    metavar="FIRST-LAST",
    help="Layers that may drop. [default: all but the first three and the last]",
)
@click.option("--rank", type=int, default=32, show_default=True, help="Of the correctors.")
@click.option("--bare", is_flag=True, help="No correctors: a dropped layer hands its input on.")
@click.option(
    "--greedy",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Whether the order goes by joint damage, or by each layer's own.",
)
@click.option("--width", type=int, default=4, show_default=True, help="Layers tried at each step of the greedy order.")
@click.option("--most", type=int, help="Layers in the order. [default: half of the layers]")
@click.option("--threads", type=int, help="Threads of the engine. [default: chosen by the core]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of windows and of written text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file too.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a picture: .png, .svg or .pdf; needs matplotlib.")
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
def command(
    model: str,
    paths: tuple[Path, ...],
    write: bool,
    windows: int,
    fit_windows: int,
    window: int,
    bare: bool,
    greedy: str,
    threads: int | None,
    seed: int,
    as_json: bool,
    output: Path | None,
    plot: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Run the command."""
    from loradrop._core import Model
    from loradrop.analyze import AnalyzeOptions, analyze
    from loradrop.analyze.run import check_model
    from loradrop.analyze.texts import split_windows
    from loradrop.cli.analyze_table import print_analysis
    from loradrop.gathered_text import gather_windows, n_to_write
    from loradrop.text_files import read_texts
    from loradrop_convert.output import check_outputs

    _check_outputs(output, plot, force, [model, *paths])
    check_int("windows", windows, 1)
    n_fit = 0 if bare else check_int("fit-windows", fit_windows, 1)
    chosen = AnalyzeOptions(n_threads=threads or 0, greedy=greedy == "on", **options)
    read = read_texts(paths)  # a missing file is told before a model is loaded or downloaded
    with pull_progress() as pulling:
        path = resolve_model(model, pulling)
    check_outputs(filter(None, [output, plot]), force, inputs=[path])  # it may have been given by name
    check_model(path, chosen, window)
    n_texts = windows + n_fit
    n_written = n_to_write(n_texts, files=bool(paths), write=write or not paths)
    with stage_progress() as show:
        texts = gather_windows(
            Model(str(path)),
            read,
            n_texts - n_written,
            n_written,
            window,
            seed=seed,
            n_threads=chosen.n_threads,
            progress=show,
        )
        analysis = analyze(path, *split_windows(texts, windows, n_fit), chosen, progress=show)
    text = json.dumps(analysis.to_dict())
    _write_outputs(analysis, text, output, plot, force)
    if as_json:
        click.echo(text)
    else:
        print_analysis(analysis)


def _check_outputs(output: Path | None, plot: Path | None, force: bool, inputs: list[str | Path]) -> None:
    from loradrop.analyze.picture import check_picture
    from loradrop_convert.output import check_outputs

    check_outputs(filter(None, [output, plot]), force, inputs)
    if plot is not None:
        check_picture(plot)


def _write_outputs(analysis: Any, text: str, output: Path | None, plot: Path | None, force: bool) -> None:
    from loradrop.analyze.picture import draw
    from loradrop_convert.output import complete_file

    if output is not None:
        with complete_file(output, force) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        with complete_file(plot, force) as temporary:
            draw(analysis, temporary, plot.suffix)
