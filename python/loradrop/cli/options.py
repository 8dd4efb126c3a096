"""Options that commands share, and the `Llama` that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from loradrop.cli.points import K_SYNTAX, parse_k
from loradrop.cli.progress import pull_progress
from loradrop.llama import Llama
from loradrop.models import resolve_model
from loradrop.options import DEFAULT_KV_WINDOW, FLASH_ATTN, KV_TYPES, REFRESH_POLICIES

F = TypeVar("F", bound=Callable[..., Any])

MODEL_HELP = "MODEL is a GGUF file, a known name (smollm2), or owner/repository/file.gguf on the Hugging Face Hub."

HUGE_PAGES_OPTION = click.option(
    "--use-hugepages", is_flag=True, help="Read the weights into huge pages, on Linux; steps may be quicker."
)

_DROP_OPTIONS = [
    click.option(
        "--rho",
        type=float,
        help="Share of the layers that drop, 0 to 1; 0 decodes in full. [default: the corrector's]",
    ),
    click.option(
        "--k",
        type=parse_k,
        metavar=K_SYNTAX,
        help="LoRA steps between two refresh steps. [default: the corrector's, else 3; with verify auto: what pays]",
    ),
    click.option(
        "--refresh",
        type=click.Choice(REFRESH_POLICIES),
        help="Whether a refresh step runs one token (single) or the LoRA steps' tokens again (refill), or whether LoRA "
        "steps only draft what a full step checks (verify), which loses nothing. [default: the corrector's]",
    ),
    click.option(
        "--kv-window",
        type=int,
        help=f"With refill: newest tokens whose K/V droppable layers keep. [default: {DEFAULT_KV_WINDOW}]",
    ),
    click.option(
        "--corrector",
        type=click.Path(path_type=Path),
        help="A sidecar with the corrector. [default: the model's own, or the package's]",
    ),
    click.option(
        "--tolerance",
        type=float,
        default=1.0,
        show_default=True,
        help="With verify: keep a drafted token of at least this share of the best one's probability; 1 is exact.",
    ),
    click.option(
        "--allow-uncorrected",
        is_flag=True,
        help="Drop layers even without a trained corrector; the text is poor then.",
    ),
]

_CONTEXT_OPTIONS = [
    click.option("--ctx", type=int, default=4096, show_default=True, help="Tokens that the context holds."),
    click.option("--threads", type=int, help="Threads of the decode. [default: chosen by the core]"),
    click.option(
        "--n-gpu-layers",
        type=int,
        default=0,
        show_default=True,
        help="Layers on the GPU; -1 for all.",
    ),
    click.option(
        "--batch",
        type=int,
        default=512,
        show_default=True,
        help="Tokens of the prompt that are decoded at once.",
    ),
    click.option(
        "--flash-attn",
        type=click.Choice(FLASH_ATTN),
        default="auto",
        show_default=True,
        help="Whether to use flash attention.",
    ),
    click.option(
        "--type-k",
        type=click.Choice(KV_TYPES),
        default="f16",
        show_default=True,
        help="Type of the cache's keys.",
    ),
    click.option(
        "--type-v",
        type=click.Choice(KV_TYPES),
        default="f16",
        show_default=True,
        help="Type of the cache's values.",
    ),
    HUGE_PAGES_OPTION,
    click.option("--verbose", is_flag=True, help="Show llama.cpp's log on stderr."),
]


class LlamaOptions(TypedDict):
    """What `llama_options` passes to a command."""

    rho: float | None
    k: int | str | None
    refresh: str | None
    kv_window: int | None
    corrector: Path | None
    allow_uncorrected: bool
    tolerance: float
    ctx: int
    threads: int | None
    n_gpu_layers: int
    batch: int
    flash_attn: str
    type_k: str
    type_v: str
    use_hugepages: bool
    verbose: bool


def llama_options(function: F) -> F:
    """Add the options that `LlamaOptions` lists to a command."""
    for option in reversed(_DROP_OPTIONS + _CONTEXT_OPTIONS):
        function = option(function)
    return function


def open_llama(model: str, options: LlamaOptions) -> Llama:
    """Return the `Llama` that a command's options ask for, with a progress bar for a download."""
    with pull_progress() as progress:
        path = resolve_model(model, progress)
    return Llama(
        path,
        rho=options["rho"],
        k=options["k"],
        refresh=options["refresh"],
        kv_window=options["kv_window"],
        corrector=options["corrector"],
        allow_uncorrected=options["allow_uncorrected"],
        tolerance=options["tolerance"],
        n_ctx=options["ctx"],
        n_threads=options["threads"],
        n_gpu_layers=options["n_gpu_layers"],
        n_batch=options["batch"],
        flash_attn=options["flash_attn"],
        type_k=options["type_k"],
        type_v=options["type_v"],
        use_hugepages=options["use_hugepages"],
        verbose=options["verbose"],
    )
