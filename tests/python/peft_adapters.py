"""Adapters of random weights as PEFT makes and saves them, and what PEFT makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def write_peft(folder: Path, model: Any, seed: int = 1, base: str = "no/such-model", **options: Any) -> Path:
    """Save an adapter of a model of transformers, which is changed."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        init_lora_weights=False, **({"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | options)
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "modules_to_save" in name or (name.endswith("bias") and options.get("bias") == "all"):
                tensor += 0.05 * torch.randn(tensor.shape)
    adapted.save_pretrained(folder)
    change_config(folder, base_model_name_or_path=base)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def adapted_model(model: Any, folders: Sequence[Path], scales: Sequence[float] | None = None) -> Any:
    """Return a model of transformers, which is changed, with adapters as PEFT loads them."""
    adapted = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    names = [str(i) for i in range(len(folders))]
    for name, folder in zip(names[1:], folders[1:], strict=True):
        adapted.load_adapter(folder, adapter_name=name)
    if len(names) > 1:
        adapted.base_model.set_adapter(names)
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, scale in zip(names, scales or [], strict=bool(scales)):
                module.set_scale(name, scale)
    return adapted.eval()


def logits_of(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """Return logits [n_tokens, n_vocab]."""
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits
