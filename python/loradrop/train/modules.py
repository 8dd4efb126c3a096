"""Between the tensors of a corrector file and the torch modules that are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Tensors = dict[str, NDArray[np.float32]]
TensorName = Callable[[str], str]  # part (a, b, ...) -> name in a file


def module_tensors(module: nn.Module, tensor_name: TensorName) -> Tensors:
    """Return a corrector's parameters under their names in a file."""
    return {
        tensor_name(name): parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in module.named_parameters()
    }


def load_module(module: nn.Module, tensor_name: TensorName, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Fill a corrector's parameters from a file's tensors; what the file lacks stays as it is.

    Raises
    ------
    ValueError
        If a tensor has another shape than its parameter.
    """
    for name, parameter in module.named_parameters():
        tensor = tensors.get(tensor_name(name))
        if tensor is None:
            continue
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"start: {tensor_name(name)} has shape {list(tensor.shape)}, expected {list(parameter.shape)}; "
                "give the rank and the hidden size that it was made with"
            )
        with torch.no_grad():
            parameter.copy_(torch.tensor(np.asarray(tensor)))
