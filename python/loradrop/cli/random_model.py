"""``loradrop random-model``: a model of random weights, to measure speed and memory with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from loradrop.cli.progress import pull_progress
from loradrop.cli.ranges import layer_range
from loradrop.random_model import SHAPES, RandomCorrector, write_random_model
from loradrop.random_model.architecture import ARCHITECTURES
from loradrop_convert.corrector import REUSE_RULES
from loradrop_convert.storage import STORAGE_TYPES


@click.command(
    name="random-model",
    short_help="Write a model of random weights, to measure with.",
    help="""Write a model of random weights as GGUF, of a known model's shape or any other, with a random corrector if
    wanted. Its text means nothing; its speed and its memory are those of a trained model.""",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Whose sizes to take.")
@click.option("--arch", type=click.Choice(list(ARCHITECTURES)), help="Another architecture than the shape's.")
@click.option("--layers", type=int, help="Other sizes than the shape's: layers,")
@click.option("--embd", type=int, help="width of their states,")
@click.option("--heads", type=int, help="attention heads,")
@click.option("--kv-heads", type=int, help="K/V heads,")
@click.option("--ff", type=int, help="width of the feed-forward part,")
@click.option("--experts", type=int, help="experts of a layer (0: no mixture),")
@click.option("--experts-used", type=int, help="those that a token runs through,")
@click.option("--vocab", type=int, help="tokens,")
@click.option("--tied/--untied", default=None, help="and whether the token embedding is the output head.")
@click.option("--type", "type_", default="q4_0", show_default=True, help="Type of the weights, for example q8_0.")
@click.option("--output-type", help="Of the output head. [default: q6_k for types of fewer bits, else the same]")
@click.option("--corrector", type=click.Choice(REUSE_RULES), help="Put a random corrector of this rule inside.")
@click.option("--rank", type=int, default=RandomCorrector.rank, show_default=True, help="Of the corrector.")
@click.option(
    "--hidden",
    type=int,
    default=RandomCorrector.hidden,
    show_default=True,
    help="Hidden units of a segment; 0 for none.",
)
@click.option(
    "--segments",
    type=layer_range,
    multiple=True,
    metavar="FIRST-LAST",
    help="Layers of a segment, for example 3-17; may be repeated. [default: those of --rho]",
)
@click.option(
    "--rho",
    type=float,
    multiple=True,
    help="Share of the layers, from the middle, that can drop; repeated, a segment for each. [default: 0.5]",
)
@click.option(
    "--corrector-type",
    type=click.Choice(STORAGE_TYPES),
    default=RandomCorrector.type,
    show_default=True,
    help="Of the corrector's matrices.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another one gives other weights.")
@click.option("--force", is_flag=True, help="Replace the output if it is there.")
def command(
    output: Path,
    shape: str,
    type_: str,
    output_type: str | None,
    corrector: str | None,
    rank: int,
    hidden: int,
    segments: tuple[tuple[int, int], ...],
    rho: tuple[float, ...],
    corrector_type: str,
    seed: int,
    force: bool,
    **sizes: int | str | bool | None,
) -> None:
    """Run the command."""
    if corrector is None and (segments or rho):
        raise click.UsageError("--segments and --rho describe a corrector; give its rule with --corrector.")
    if segments and rho:
        raise click.UsageError("--segments and --rho both say which layers drop; give one of them.")
    changed = {name: value for name, value in sizes.items() if value is not None}
    wanted = None
    if corrector is not None:
        wanted = RandomCorrector(
            reuse=corrector,
            rank=rank,
            hidden=hidden,
            segments=segments,
            rho=rho or RandomCorrector.rho,
            type=corrector_type,
        )
    with pull_progress() as progress:
        write_random_model(
            output,
            dataclasses.replace(SHAPES[shape], **changed),  # type: ignore[arg-type]
            type=type_,
            output_type=output_type,
            corrector=wanted,
            seed=seed,
            force=force,
            progress=progress,
        )
    click.echo(output)
