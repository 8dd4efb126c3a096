"""``loradrop train``: a corrector by distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from loradrop.cli.exact_advice import exact_advice
from loradrop.cli.options import MODEL_HELP
from loradrop.cli.progress import pull_progress, stage_progress
from loradrop.cli.ranges import int_list, layer_range
from loradrop.models import resolve_model
from loradrop.recommended import expected_tokens_per_round
from loradrop_convert.corrector import CORRECTED_POLICIES, REUSE_RULES

TEXTS = "texts.npz"  # in OUT
CHARACTERS_PER_TOKEN = 6  # more than most texts have, so that a dataset's rows are enough


@click.command(
    name="train",
    short_help="Train a corrector by distillation.",
    help=f"""Train a corrector so that decoding with LoRA-Drop predicts what the full model predicts.

    Needs the extra `train` (pip install "loradrop[train]"). What a frozen model gives for the texts is computed once
    and kept in OUT/states; then come regression of its states (for the rule segment) and distillation of its
    predictions on the schedule as it is decoded. Ctrl-C during the distillation leaves a checkpoint: go on with
    --resume, which keeps the texts of the first start.

    {MODEL_HELP} A Hugging Face folder needs --tokenizer, a GGUF file of the same model.""",
)
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A folder for all results.")
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="A file of text, UTF-8; may be repeated.")
@click.option("--dataset", help="A dataset to read with the library `datasets`: a name, or a folder. Needs --texts.")
@click.option("--split", default="train", show_default=True, help="Part of the dataset.")
@click.option("--column", default="text", show_default=True, help="Column of the dataset that holds the text.")
@click.option("--texts", type=int, help="Windows to take from files and dataset, evenly spread. [default: all]")
@click.option("--self", "written", type=int, default=0, help="Windows that the model writes itself.")
@click.option("--held-out", type=click.Path(path_type=Path), multiple=True, help="A file of text to judge by.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens of a window.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A GGUF file that tokenises and writes.")
@click.option("--reuse", type=click.Choice(REUSE_RULES), default="segment", show_default=True, help="The rule.")
@click.option(
    "--segment", "segments", type=layer_range, metavar="FIRST-LAST", multiple=True, help="A run; may be repeated."
)
@click.option(
    "--layers",
    type=int_list,
    metavar="N,N,...",
    help="Droppable layers in the order in which they drop, for other rules.",
)
@click.option("--rank", type=int, default=64, show_default=True, help="Of the low-rank parts.")
@click.option("--hidden", type=int, default=1024, show_default=True, help="Width of a segment's hidden layer.")
@click.option(
    "--k", "ks", type=int_list, metavar="N,N,...", default="1,2,3", show_default=True, help="Values of k to train for."
)
@click.option("--refresh", type=click.Choice(CORRECTED_POLICIES), default="refill", show_default=True)
@click.option("--kv-window", type=int, help="With refill: K/V that droppable layers keep. [default: all]")
@click.option(
    "--prompt",
    type=int_list,
    metavar="N,N,...",
    default="16,64",
    show_default=True,
    help="Least and most tokens of prompt.",
)
@click.option("--state-steps", type=int, default=2000, show_default=True, help="Steps of the first stage (segment).")
@click.option("--steps", type=int, default=2000, show_default=True, help="Steps of the distillation.")
@click.option("--minutes", type=float, help="Stop the distillation after this time.")
@click.option("--batch", type=int, default=8, show_default=True, help="Windows in a batch.")
@click.option("--share", type=float, default=0.5, show_default=True, help="Share of the tokens with a loss.")
@click.option("--state-lr", type=float, default=2e-3, show_default=True, help="Learning rate of the first stage.")
@click.option("--lr", type=float, default=5e-4, show_default=True, help="Learning rate of the distillation.")
@click.option("--ce", type=float, default=0.0, show_default=True, help="Weight of cross-entropy beside KL.")
@click.option(
    "--hidden-states", type=float, default=0.0, show_default=True, help="Weight of the last layer's output beside KL."
)
@click.option("--evaluate-every", type=int, default=200, show_default=True, help="Steps between evaluations.")
@click.option("--start", type=click.Path(path_type=Path), help="A corrector to begin with.")
@click.option("--store-kv/--no-store-kv", default=True, help="Keep K and V of the full model on disk: faster.")
@click.option("--states", type=click.Path(path_type=Path), help="A folder of states to share. [default: OUT/states]")
@click.option("--bf16", is_flag=True, help="Compute the frozen model in bfloat16.")
@click.option("--checkpointing", is_flag=True, help="Compute layers anew for the gradient: less memory, more work.")
@click.option("--threads", type=int, help="Threads of torch.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the training in OUT.")
def command(
    model: str,
    out: Path,
    data: tuple[Path, ...],
    dataset: str | None,
    split: str,
    column: str,
    texts: int | None,
    written: int,
    held_out: tuple[Path, ...],
    window: int,
    tokenizer: Path | None,
    start: Path | None,
    states: Path | None,
    threads: int | None,
    seed: int,
    resume: bool,
    **options: Any,
) -> None:
    """Run the command."""
    try:
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        from loradrop.train import train as training
        from loradrop.train.dataset import dataset_text
        from loradrop.train.start import shape_of_start
        from loradrop.train.texts import load_texts, save_texts, split_texts
    except ModuleNotFoundError as error:
        raise click.ClickException(f'{error.name} is missing: pip install "loradrop[train]"') from None
    from loradrop._core import Model
    from loradrop.gathered_text import gather_windows
    from loradrop.text_files import read_texts
    from loradrop_convert.sources import read_corrector

    chosen = _train_options(options, seed)
    begin = None if start is None else read_corrector(start)
    if not resume:
        training.check_new(out)
    if begin is not None:
        shape_of_start(chosen.shape, begin)  # raises, before texts are gathered
    if dataset is not None and texts is None:
        raise click.UsageError("--texts is missing: say how many windows to take from the dataset")
    if threads is not None:
        torch.set_num_threads(threads)
    with pull_progress() as pulling:
        path = resolve_model(model, pulling) if not Path(model).is_dir() else Path(model)
    if path.is_dir() and tokenizer is None:
        raise click.UsageError("--tokenizer is missing: give a GGUF file of the same model")
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    main_process = processes.is_main_process
    with stage_progress(hidden=not main_process) as show:
        with processes.main_process_first():
            if (resume or not main_process) and (out / TEXTS).exists():
                made = load_texts(out / TEXTS)
            else:
                tokenises = Model(str(tokenizer or path))
                read = read_texts(data)
                if dataset is not None:
                    read[dataset] = dataset_text(dataset, split, column, CHARACTERS_PER_TOKEN * window * (texts or 0))
                gathered = gather_windows(
                    tokenises, read, texts, written, window, seed=seed, n_threads=threads or 0, progress=show
                )
                made = split_texts(tokenises, gathered, held_out)
                out.mkdir(parents=True, exist_ok=True)
                save_texts(out / TEXTS, made)
        results = training.train(
            path,
            made,
            out,
            chosen,
            start=begin,
            states=states,
            resume=resume,
            progress=show,
        )
    if main_process:
        for dropped, result in results.items():
            click.echo(
                f"layers {dropped} dropped, held out: KL {result.kl:.3f}, NLL {result.nll_rise:+.3f}, "
                f"agreement {result.agreement:.3f}" + _drafts_text(result.agreement_by_distance)
            )
        sidecar = out / "corrector.gguf"
        if sidecar.exists() and (advice := exact_advice(path, sidecar)):
            click.echo(advice)
        click.echo(f"written to {out}")


def _drafts_text(agreements: Sequence[float]) -> str:
    if not agreements:
        return ""
    by_distance = ", ".join(f"{one:.3f}" for one in agreements)
    return f" (by distance {by_distance}); verify: {expected_tokens_per_round(agreements):.2f} tokens a round"


def _train_options(options: dict[str, Any], seed: int) -> Any:
    from loradrop.train.loop import LoopOptions
    from loradrop.train.student import Shape
    from loradrop.train.train import TrainOptions

    segments, layers, reuse = options["segments"], options["layers"] or (), options["reuse"]
    if (reuse == "segment") != bool(segments) or (reuse == "segment") == bool(layers):
        raise click.UsageError("give --segment FIRST-LAST for the rule segment, --layers for any other")
    if len(options["prompt"]) != 2:
        raise click.UsageError("--prompt: give the least and the most, for example 16,64")
    return TrainOptions(
        shape=Shape(reuse, options["rank"], float(options["rank"]), layers, segments, options["hidden"]),
        loop=LoopOptions(
            steps=options["steps"],
            lr=options["lr"],
            ce_weight=options["ce"],
            state_weight=options["hidden_states"],
            evaluate_every=options["evaluate_every"],
            seconds=None if options["minutes"] is None else 60 * options["minutes"],
        ),
        ks=options["ks"],
        refresh=options["refresh"],
        kv_window=options["kv_window"],
        prompt=options["prompt"],
        state_steps=options["state_steps"],
        state_lr=options["state_lr"],
        batch=options["batch"],
        share=options["share"],
        store_kv=options["store_kv"],
        bf16=options["bf16"],
        checkpointing=options["checkpointing"],
        seed=seed,
    )
