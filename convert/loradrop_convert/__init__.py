"""Tools that read, check and write correctors, and join them with models: GGUF, safetensors, PyTorch."""

import loradrop  # noqa: F401  # which imports parts of this package: none of them may have begun before it
