"""What llama.cpp only logs, and a user should hear of."""

from __future__ import annotations

import warnings

from loradrop._core import Model, build_info


def warn_of_model(model: Model, n_ctx: int, n_gpu_layers: int, stacklevel: int = 3) -> None:
    """Warn with UserWarnings of what will not work as it seems.

    Parameters
    ----------
    n_ctx, n_gpu_layers : int
        As asked for.
    stacklevel : int
        Whom the warnings are for, as in ``warnings.warn``: 3 for the caller's caller.
    """
    for text in _doubts(model, n_ctx, n_gpu_layers):
        warnings.warn(text, UserWarning, stacklevel=stacklevel)


def _doubts(model: Model, n_ctx: int, n_gpu_layers: int) -> list[str]:
    doubts = []
    metadata = model.metadata
    if metadata.get("tokenizer.ggml.model") == "gpt2" and not metadata.get("tokenizer.ggml.pre"):
        doubts.append(
            f"{model.path}: tokenizer.ggml.pre is missing, so text is split in a general way that may not be the "
            "model's, and answers get worse; convert the model anew"
        )
    if 0 < model.n_ctx_train < n_ctx:
        doubts.append(
            f"n_ctx={n_ctx}: the model was trained with texts of {model.n_ctx_train} tokens; beyond them answers get "
            "worse"
        )
    if n_gpu_layers and not build_info()["gpu"]:
        doubts.append(
            f"n_gpu_layers={n_gpu_layers}: this build has no GPU back end, or finds no GPU; all layers run on the CPU. "
            "README, 'Options of the build', says how to build one"
        )
    return doubts
