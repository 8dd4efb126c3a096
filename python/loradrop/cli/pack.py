"""``loradrop pack``: put a corrector into a model's file, or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loradrop.cli.progress import pull_progress
from loradrop.models import resolve_model


@click.command(
    name="pack",
    short_help="Put a corrector into a model's file, or beside it.",
    help="""Put CORRECTOR into the model BASE, or beside it with --sidecar.

    BASE is a GGUF file, or any other name of a model that `generate` takes. CORRECTOR is a sidecar GGUF, a
    corrector's folder, or a checkpoint of the paper's reference code.

    A packed model is for loradrop only: stock llama.cpp loads BASE, which stays as it is.""",
)
@click.argument("base")
@click.argument("corrector", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--sidecar", is_flag=True, help="Write the corrector alone, as a sidecar for BASE.")
@click.option(
    "--type",
    "type_",
    type=click.Choice(["f16", "q8_0"]),
    help="Type of the corrector's matrices; q8_0 holds where the rule is segment and rows divide into blocks of 32. "
    "[default: as they are in a GGUF, else f16]",
)
@click.option("--force", is_flag=True, help="Replace the output if it is there.")
def command(base: str, corrector: Path, output: Path, sidecar: bool, type_: Any, force: bool) -> None:
    """Run the command."""
    from loradrop_convert.pack import pack, pack_sidecar

    with pull_progress() as progress:
        path = resolve_model(base, progress)
        if sidecar:
            pack_sidecar(path, corrector, output, type=type_, force=force)
        else:
            pack(path, corrector, output, type=type_, force=force, progress=progress)
    click.echo(output)
