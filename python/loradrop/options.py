"""What a `Llama` is made with: checked before any work, and resolved against the model's file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loradrop._core import Corrector, CorrectorError, Model
from loradrop.adapters import check_adapters
from loradrop.checks import check_bool, check_choice, check_float, check_int
from loradrop.draft_layers import draft_layers
from loradrop.packaged_correctors import packaged_corrector
from loradrop.recommended import best_exact_count
from loradrop.round_pace import MOST_DRAFTS
from loradrop_convert.adapter_scales import AdapterPaths, adapter_scales
from loradrop_convert.base import check_weights
from loradrop_convert.gguf_header import read_header

REFRESH_POLICIES = ("single", "refill", "verify")
DEFAULT_REFRESH = "single"  # the paper's, for correctors that name none
DEFAULT_K = 3
AUTO = "auto"
DEFAULT_KV_WINDOW = 64
UNCORRECTED_RHO = 0.25  # at which drafts of a model without a corrector are mostly right
MAX_K = 2**20
MAX_INT32 = 2**31 - 1
MAX_THREADS = 512

FLASH_ATTN = ("auto", "on", "off")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """What the caller asks of LoRA-Drop.

    Attributes
    ----------
    rho : float, optional
        Share of the layers that drop, [0, 1); None takes the file's.
    k : int or "auto", optional
        LoRA steps between two refresh steps, 0 or more; None takes the file's, and ``auto`` with ``verify``.
    corrector : path, optional
        A sidecar file; None takes what the model's own file holds or, if `rho`, `k` or `refresh` is given, what the
        package holds for it.
    refresh : {"single", "refill", "verify"}, optional
        The refresh policy; None takes the corrector's, else `DEFAULT_REFRESH`.
    kv_window : int, optional
        Newest tokens whose K/V droppable layers keep, with ``refill``; None takes `DEFAULT_KV_WINDOW`.
    allow_uncorrected : bool
        Whether to drop layers without a trained corrector where there is none; ``verify``, which loses nothing, does so
        in any case.
    tolerance : float
        With ``verify``, the share of the best token's probability that a draft needs to be kept, above 0; with 1 it has
        to be the sampler's own choice.
    """

    rho: float | None = None
    k: int | str | None = None
    corrector: str | os.PathLike[str] | None = None
    refresh: str | None = None
    kv_window: int | None = None
    allow_uncorrected: bool = False
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        if check_float("tolerance", self.tolerance, 0.0, 1.0) == 0:
            raise ValueError("tolerance=0: give a number above 0; 1 decodes exactly")
        if self.rho is not None:
            check_float("rho", self.rho, 0.0, 1.0, below=True)
        if isinstance(self.k, str):
            check_choice("k", self.k, (AUTO,))
        elif self.k is not None:
            check_int("k", self.k, 0, MAX_K)
        if self.refresh is not None:
            check_choice("refresh", self.refresh, REFRESH_POLICIES)
        if self.kv_window is not None:
            check_int("kv_window", self.kv_window, 0, MAX_INT32)
            if self.refresh == "verify":
                raise ValueError(
                    f"kv_window={self.kv_window} with refresh='verify': droppable layers keep all K/V; leave it out"
                )
        if self.corrector is not None and not Path(self.corrector).is_file():
            raise FileNotFoundError(
                f"corrector={os.fspath(self.corrector)!r}: no such file; give the path of a "
                "sidecar GGUF, or None for what the model's own file holds"
            )

    @property
    def window(self) -> int:
        """`kv_window`, or its default."""
        return DEFAULT_KV_WINDOW if self.kv_window is None else self.kv_window

    @property
    def drops(self) -> bool:
        """Whether LoRA-Drop is asked for, rather than left to what the model's file holds."""
        given = self.rho is not None or self.k is not None or self.refresh is not None
        return given and self.rho != 0 and self.k != 0


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """How the model is loaded and the context made; the names are those of `Llama`."""

    n_ctx: int = 4096
    n_gpu_layers: int = 0
    n_threads: int | None = None
    n_batch: int = 512
    flash_attn: str | bool = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    lora_path: AdapterPaths = None
    lora_scale: float | Sequence[float] = 1.0
    use_mmap: bool | None = None
    use_hugepages: bool = False

    def __post_init__(self) -> None:
        check_int("n_ctx", self.n_ctx, 1, MAX_INT32)
        check_int("n_gpu_layers", self.n_gpu_layers, -1, MAX_INT32)
        if self.n_threads is not None:
            check_int("n_threads", self.n_threads, 1, MAX_THREADS)
        check_int("n_batch", self.n_batch, 1, MAX_INT32)
        if not isinstance(self.flash_attn, bool):
            check_choice("flash_attn", self.flash_attn, FLASH_ATTN)
        check_choice("type_k", self.type_k, KV_TYPES)
        check_choice("type_v", self.type_v, KV_TYPES)
        check_adapters(self.adapters)
        if self.use_mmap is not None:
            check_bool("use_mmap", self.use_mmap)
        if check_bool("use_hugepages", self.use_hugepages) and self.use_mmap:
            raise ValueError("use_hugepages=True with use_mmap=True: a mapped file has no huge pages; give one of them")

    @property
    def adapters(self) -> list[tuple[Path, float]]:
        """The LoRA adapters with their scales."""
        return adapter_scales(self.lora_path, self.lora_scale, ("lora_path", "lora_scale"))

    @property
    def maps_file(self) -> bool:
        """Whether the model's file is mapped into memory instead of read."""
        return not self.use_hugepages if self.use_mmap is None else self.use_mmap

    @property
    def flash_attn_name(self) -> str:
        """Return `flash_attn` as one of `FLASH_ATTN`."""
        if isinstance(self.flash_attn, bool):
            return "on" if self.flash_attn else "off"
        return self.flash_attn


@dataclass(frozen=True)
class Drop:
    """What the context is to do.

    Attributes
    ----------
    corrector : Corrector, optional
        None where every step runs all layers.
    rho : float
        Share of the layers that drop; 0 where none does.
    k : int
        LoRA steps between two refresh steps, with `adapt_k` at most; 0 where there are none.
    refresh : {"single", "refill", "verify"}
        The refresh policy.
    adapt_k : bool
        Whether a round of ``verify`` drafts as many tokens as pay.
    """

    corrector: Corrector | None
    rho: float
    k: int
    refresh: str = DEFAULT_REFRESH
    adapt_k: bool = False

    @property
    def reuse(self) -> str:
        """The corrector's rule; ``none`` where there is no trained one."""
        return "none" if self.corrector is None or self.corrector.is_none else self.corrector.reuse

    def dropped_layers(self, n_layer: int) -> tuple[int, ...]:
        """Return the layers, ascending, that LoRA steps leave out of a model with `n_layer` layers."""
        if self.corrector is None:
            return ()
        return tuple(sorted(self.corrector.dropped_layers(self.rho, n_layer)))


FULL = Drop(None, 0.0, 0)


def resolve_drop(options: DropOptions, model: Model) -> Drop:
    """Return what `options` come to with this model and its corrector.

    Raises
    ------
    CorrectorError
        If LoRA-Drop is asked for and there is no corrector, or the corrector cannot be used, or it
        names no recommended rho and none is given.
    ValueError
        If rho asks for no layer or for more than can drop.
    """
    corrector = _load_corrector(options, model)
    if corrector is None:
        if not options.drops:
            if options.tolerance < 1:
                raise ValueError(_idle_tolerance(options))
            return FULL
        if options.refresh != "verify" and (options.rho is None or not options.allow_uncorrected):
            raise CorrectorError(_no_corrector(options, model))
        corrector = Corrector.none(model)
    refresh = options.refresh or corrector.refresh or DEFAULT_REFRESH
    rho = _recommended_rho(corrector, options, model, refresh) if options.rho is None else options.rho
    if options.tolerance < 1 and (refresh != "verify" or rho == 0 or options.k == 0):
        raise ValueError(_idle_tolerance(options))
    if rho == 0 or options.k == 0:
        return FULL
    dropped = corrector.dropped_layers(rho, model.n_layer)  # raises if there is no such choice
    if corrector.is_none and refresh == "verify":
        corrector = Corrector.none(model, draft_layers(model, len(dropped)))
    k = options.k
    if k is None:
        k = AUTO if refresh == "verify" else DEFAULT_K if corrector.k is None else corrector.k
    if isinstance(k, str):
        if refresh != "verify":
            raise ValueError(f"k={k!r} with refresh={refresh!r}: give a number, or refresh='verify'")
        return Drop(corrector, rho, MOST_DRAFTS, refresh, adapt_k=True)
    return Drop(corrector, rho, k, refresh) if k else FULL


def _load_corrector(options: DropOptions, model: Model) -> Corrector | None:
    path = model.path if options.corrector is None else os.fspath(options.corrector)
    corrector = Corrector.load(path, model)
    if corrector is None and options.corrector is not None:
        raise CorrectorError(f"corrector={path!r}: the file holds no corrector; give a sidecar made for this model")
    if corrector is not None and options.corrector is not None:
        check_weights(read_header(path, CorrectorError), model.path)
    packaged = packaged_corrector(model, options.refresh) if corrector is None and options.drops else None
    return corrector if packaged is None else Corrector.load(os.fspath(packaged), model)


def _no_corrector(options: DropOptions, model: Model) -> str:
    given = {"rho": options.rho, "k": options.k, "refresh": options.refresh}
    asked = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    return (
        f"{asked}: drops layers, but {model.path} holds no corrector: take a model file that holds one, give the path "
        "of a sidecar as corrector=, or set rho and allow_uncorrected=True to see what the bare method gives; "
        "refresh='verify' needs none"
    )


def _idle_tolerance(options: DropOptions) -> str:
    return f"tolerance={options.tolerance}: there are no drafts; give refresh='verify', and neither rho=0 nor k=0"


def _recommended_rho(corrector: Corrector, options: DropOptions, model: Model, refresh: str) -> float:
    if options.k == 0:
        return 0.0
    if corrector.is_none:
        return UNCORRECTED_RHO
    if refresh == "verify" and (best := best_exact_count(model, corrector)) is not None:
        return best[0] / model.n_layer
    if corrector.rho is None:
        raise CorrectorError(f"rho=None: {corrector.path} names no recommended rho; give one, for example rho=0.5")
    return corrector.rho
