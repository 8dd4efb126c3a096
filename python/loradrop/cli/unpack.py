"""``loradrop unpack``: take a corrector out of a model's file."""

from __future__ import annotations

from pathlib import Path

import click

from loradrop.cli.progress import pull_progress


@click.command(
    name="unpack",
    short_help="Take a corrector out of a model's file.",
    help="""Take the corrector out of the model MODEL, a GGUF file.

    With --folder MODEL may also be a sidecar: a folder can be packed with another quantisation of its model.""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the corrector goes: a sidecar GGUF.")
@click.option("--folder", is_flag=True, help="Make the output a folder with JSON and safetensors.")
@click.option("--base", type=click.Path(path_type=Path), help="Write the model without its corrector to this file.")
@click.option("--force", is_flag=True, help="Replace outputs that are there.")
def command(model: Path, output: Path | None, folder: bool, base: Path | None, force: bool) -> None:
    """Run the command."""
    from loradrop_convert.pack import unpack

    if output is None and base is None:
        raise click.UsageError("give --output for the corrector, --base for the model, or both")
    with pull_progress() as progress:
        unpack(model, output, folder=folder, base_out=base, force=force, progress=progress)
    for path in (output, base):
        if path is not None:
            click.echo(path)
