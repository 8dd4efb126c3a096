"""LoRA-Drop decoding for llama.cpp."""

from importlib.metadata import PackageNotFoundError, version

from loradrop._core import (
    ContextFullError,
    CorrectorError,
    DecodeAborted,
    DecodeError,
    LoradropError,
    ModelError,
    UnsupportedError,
)
from loradrop.llama import Llama
from loradrop.llama_state import LlamaState
from loradrop.stats import RequestStats
from loradrop.turns import StreamLost

try:
    __version__ = version("loradrop")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ContextFullError",
    "CorrectorError",
    "DecodeAborted",
    "DecodeError",
    "Llama",
    "LlamaState",
    "LoradropError",
    "ModelError",
    "RequestStats",
    "StreamLost",
    "UnsupportedError",
    "__version__",
]
