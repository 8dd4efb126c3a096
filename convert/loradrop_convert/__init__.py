"""Tools that read, check and write correctors, and join them with models: GGUF, safetensors, PyTorch."""
