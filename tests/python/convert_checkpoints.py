"""Makes checkpoints GGUF files in f32 with the tests' vocabulary: TREE FOLDER..., beside each folder its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

tree, *folders = map(Path, sys.argv[1:])
sys.path[:0] = [str(tree), str(tree / "gguf-py")]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # noqa: E402

from tiny import _add_tokenizer  # noqa: E402


def set_vocab(converter: Any) -> None:
    _add_tokenizer(converter.gguf_writer, None, True)
    converter.gguf_writer.add_token_type_count(2)  # for an encoder's second embedding


for folder in folders:
    name = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    model_class = get_model_class(name)
    model_class.set_vocab = set_vocab
    with torch.inference_mode():
        # llama.cpp looks into a model's name for what tokens a tokenizer must have
        out = folder.with_name(f"{folder.name}.gguf")
        model_class(folder, gguf.LlamaFileType.ALL_F32, out, model_name="tiny").write()
