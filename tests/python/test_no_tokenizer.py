"""A model without a tokenizer decodes tokens, and says what it lacks where text is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loradrop._core import Context, Model, ModelError
from tiny import make_model, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_gguf(path, make_model(), tokenizer=False)
    return Model(str(path))


def test_it_decodes(model: Model) -> None:
    context = Context(model, n_ctx=256, n_threads=1, n_threads_batch=1)
    context.decode([3, 4, 5])
    assert np.isfinite(context.logits()).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.tokenize(b"text", True, True),
        lambda model: model.detokenize([3, 4], True),
        lambda model: model.token_to_piece(3, True),
    ],
    ids=["tokenize", "detokenize", "token_to_piece"],
)
def test_text_is_an_error(model: Model, call: Callable[[Model], Any]) -> None:
    with pytest.raises(ModelError, match=r"model\.gguf: tokenizer\.ggml\.model is 'no_vocab'"):
        call(model)
