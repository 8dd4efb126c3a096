"""What would go wrong without a word."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from loradrop import Llama
from loradrop._core import build_info
from tiny import make_model, write_gguf


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ({}, {"n_ctx": 4096}, "n_ctx=4096: the model was trained with texts of 2048 tokens"),
        ({"pre": ""}, {}, "tokenizer.ggml.pre is missing"),
        pytest.param(
            {},
            {"n_gpu_layers": 5},
            "n_gpu_layers=5: this build has no GPU back end",
            marks=pytest.mark.skipif(build_info()["gpu"], reason="there is a GPU"),
        ),
    ],
)
def test_warnings(tmp_path: Path, file: dict[str, Any], options: dict[str, Any], says: str) -> None:
    pytest.importorskip("transformers")  # for its table of bytes
    write_gguf(tmp_path / "model.gguf", make_model(), **file)
    with pytest.warns(UserWarning, match=says) as caught:
        Llama(tmp_path / "model.gguf", **{"n_ctx": 64, **options}).close()
    assert [warning.filename for warning in caught] == [__file__]


def test_no_warnings(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pre in (None, "llama-bpe"):
            write_gguf(tmp_path / "model.gguf", make_model(), pre=pre)
            Llama(tmp_path / "model.gguf", n_ctx=2048).close()
