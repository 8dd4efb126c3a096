"""Python code that a checkpoint brings for its tokenizer."""

from __future__ import annotations

from pathlib import Path

from loradrop._core import ModelError
from loradrop_convert.json_file import read_json
from loradrop_convert.llama_converter import NEEDS_TRUST

_TOKENIZER_CONFIG = "tokenizer_config.json"


def check_needs_no_code(checkpoint: Path) -> None:
    """Check that transformers has the tokenizer of a checkpoint itself.

    Raises
    ------
    ModelError
        If the checkpoint names code of its own for it.
    """
    path = checkpoint / _TOKENIZER_CONFIG
    classes = read_json(path).values.get("auto_map") if path.is_file() else None
    if isinstance(classes, dict):
        classes = classes.get("AutoTokenizer")
    names = [classes] if isinstance(classes, str) else classes if isinstance(classes, list) else []
    if code := ", ".join(str(name) for name in names if name):
        raise ModelError(f"{path}: auto_map: the tokenizer is Python code of the checkpoint, {code}; {NEEDS_TRUST}")
