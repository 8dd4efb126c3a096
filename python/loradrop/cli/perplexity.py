"""``loradrop perplexity``: what a model loses when it decodes with LoRA-Drop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from loradrop.cli.options import MODEL_HELP
from loradrop.cli.perplexity_tables import print_report
from loradrop.cli.points import chosen_points, point_options
from loradrop.cli.progress import pull_progress, token_progress
from loradrop.evaluate import perplexity
from loradrop.models import resolve_model
from loradrop.text_files import read_texts


@click.command(
    name="perplexity",
    short_help="Measure what a model loses with LoRA-Drop.",
    help=f"""Decode texts with LoRA-Drop and in full, and show how well both predict them.

    A window's prompt is one full step; its other tokens are decoded one by one on the schedule. Shown are the mean
    negative log-likelihood of a token in nats, the perplexity, the KL divergence from the full model in nats, and how
    often both have the same most probable token, each with its 95 % interval; all of them also by the number of LoRA
    steps since the last full step.

    {MODEL_HELP}""",
)
@click.argument("model")
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A file of text, UTF-8; may be repeated.",
)
@point_options
@click.option("--prompt", type=int, default=64, show_default=True, help="Tokens of a window's prompt.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of a window.")
@click.option(
    "--windows",
    type=int,
    default=64,
    show_default=True,
    help="Windows to take, evenly spread over the texts; 0 for all.",
)
@click.option("--parallel", type=int, help="Windows decoded at once. [default: 64, fewer if K/V took 2 GiB]")
@click.option("--threads", type=int, help="Threads of all points together. [default: one for each processor]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file too.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    model: str,
    texts: tuple[Path, ...],
    corrector: Path | None,
    allow_uncorrected: bool,
    prompt: int,
    window: int,
    windows: int,
    parallel: int | None,
    threads: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    **points: Any,
) -> None:
    """Run the command."""
    from loradrop_convert.output import check_outputs, complete_file

    check_outputs(filter(None, [output]), force, inputs=[model, *texts, *filter(None, [corrector])])
    named = read_texts(texts)
    with pull_progress() as pulling:
        path = resolve_model(model, pulling)
    check_outputs(filter(None, [output]), force, inputs=[path])  # it may have been given by name
    with token_progress("decoding windows") as decoding:
        report = perplexity(
            path,
            named,
            chosen_points(**points),
            corrector=corrector,
            allow_uncorrected=allow_uncorrected,
            prompt=prompt,
            window=window,
            n_windows=windows or None,
            n_parallel=parallel,
            n_threads=threads,
            progress=decoding,
        )
    text = json.dumps(report.to_dict())
    if output is not None:
        with complete_file(output, force) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        print_report(report)
