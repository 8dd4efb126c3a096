"""A random model becomes a GGUF file, tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from loradrop.checks import check_int
from loradrop.random_model.architecture import model_tensors
from loradrop.random_model.blocks import RandomBlocks
from loradrop.random_model.corrector import RandomCorrector
from loradrop.random_model.shape import Shape
from loradrop.random_model.tensor import RandomTensor
from loradrop.random_model.types import choose_types
from loradrop.random_model.vocabulary import add_tokenizer
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.gguf_file import corrector_fields
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.output import check_output, check_space, complete_file


def write_random_model(
    path: str | os.PathLike[str],
    shape: Shape,
    *,
    type: str = "q4_0",
    output_type: str | None = None,
    corrector: RandomCorrector | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model of random weights as a GGUF file that appears only when it is whole.

    The weights mean nothing, but the file decodes as a trained model of this shape does: as quickly, and in as much
    memory. The same arguments give the same bytes. It takes some 100 MB of memory, whatever the model's size.

    Parameters
    ----------
    shape : Shape
        For example one of `SHAPES`.
    type : str
        Of the matrices, one of `weight_types`; vectors are F32.
    output_type : str, optional
        Of the matrix that gives the logits; see `choose_types`.
    corrector : RandomCorrector, optional
        The corrector that the file holds.
    seed : int
        Of all random numbers, 0 or more.
    force : bool
        Whether a file of that name may be replaced.
    progress : callable, optional
        Called again and again.

    Raises
    ------
    ValueError
        If the parts do not fit together; nothing is written then.
    OSError
        As `complete_file` and `check_space`.
    """
    weight_type, head_type = choose_types(shape, type, output_type)
    tensors = list(model_tensors(shape, weight_type, head_type))
    data = None
    if corrector is not None:
        data = corrector.data(shape)
        tensors += corrector.tensors(data, shape)
    blocks = RandomBlocks(np.random.default_rng(check_int("seed", seed, 0)))
    check_output(path, force)
    n_bytes = sum(tensor.n_bytes for tensor in tensors)
    check_space(path, n_bytes)
    with complete_file(path, force) as temporary:
        writer = GGUFWriter(temporary, shape.arch)
        try:
            _add_keys(writer, shape, data)
            for tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, tensor.type)
            _write(writer, tensors, blocks, f"writing {Path(path).name}", n_bytes, progress)
        finally:
            writer.close()


def _add_keys(writer: GGUFWriter, shape: Shape, corrector: CorrectorData | None) -> None:
    writer.add_type("model")
    writer.add_name("random")
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    add_tokenizer(writer, shape.vocab)
    for field in [] if corrector is None else corrector_fields(corrector):
        writer.add_key_value(field.key, field.decode(), field.type)


def _write(
    writer: GGUFWriter,
    tensors: list[RandomTensor],
    blocks: RandomBlocks,
    what: str,
    n_bytes: int,
    progress: Progress | None,
) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    (file,) = writer.fout  # its own writing of tensors would take each one as a whole
    writer.write_padding(file, file.tell())
    done = 0
    for tensor in tensors:
        for chunk in blocks.chunks(tensor):
            file.write(chunk.data)
            done += chunk.size
            if progress is not None:
                progress(what, done, n_bytes)
        writer.write_padding(file, tensor.n_bytes)
