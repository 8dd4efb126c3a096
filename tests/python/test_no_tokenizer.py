"""A model without a tokenizer decodes tokens, and says what it lacks where text is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loradrop._core import Context, Model, ModelError
from tiny import _add_tensors, _finish, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    from gguf import GGUFWriter

    tiny = make_model()
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    writer = GGUFWriter(path, tiny.arch)
    writer.add_type("model")
    writer.add_vocab_size(tiny.n_vocab)
    writer.add_context_length(tiny.n_ctx_train)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_block_count(tiny.n_layer)
    writer.add_feed_forward_length(tiny.n_ff)
    writer.add_head_count(tiny.n_head)
    writer.add_head_count_kv(tiny.n_head_kv)
    writer.add_layer_norm_rms_eps(tiny.rms_eps)
    writer.add_rope_dimension_count(tiny.n_embd // tiny.n_head)
    writer.add_tokenizer_model("no_vocab")
    _add_tensors(writer, tiny.tensors, "f32")
    _finish(writer)
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
