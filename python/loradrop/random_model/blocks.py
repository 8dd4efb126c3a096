"""Random weights, quantised by llama.cpp, in any number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from loradrop._core import quantize
from loradrop.random_model.tensor import RandomTensor
from loradrop_convert.gguf_header import read_header

Bytes = npt.NDArray[np.uint8]

UNIT = 256  # values that stay together; whole blocks of every type
POOL = 4096  # units that are quantised
_PROBE = "blk.0.ffn_up.weight"  # a tensor to which the quantiser gives just the type that is asked for


class RandomBlocks:
    """Gives random tensors as a file holds them, in chunks.

    A tensor is made of units of 256 values, from a pool of 4096 units that has been quantised once; each chunk has all
    of them in another order. Drawing and quantising every weight of a model with eight billion of them would take far
    longer than writing them, and a block's bytes do not depend on the row in which it lies.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where all values come from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pools: dict[tuple[GGMLQuantizationType, float, float], Bytes] = {}

    def chunks(self, tensor: RandomTensor) -> Iterator[Bytes]:
        """Yield the bytes of a tensor, in order."""
        key = (tensor.type, tensor.mean, tensor.std)
        if key not in self._pools:
            self._pools[key] = self._pool(*key)
        pool = self._pools[key]
        left = tensor.n_bytes
        while left:
            n_units = min(POOL, -(-left // pool.shape[1]))
            chunk = pool[self._rng.permutation(POOL)[:n_units]].reshape(-1)[:left]
            yield chunk
            left -= chunk.size

    def _pool(self, type_: GGMLQuantizationType, mean: float, std: float) -> Bytes:
        """Return the units [POOL, bytes of a unit]."""
        values = self._rng.standard_normal((POOL, UNIT), np.float32) * np.float32(std) + np.float32(mean)
        block, block_bytes = GGML_QUANT_SIZES[type_]
        return _quantised(values, type_).reshape(POOL, UNIT // block * block_bytes)


def _quantised(values: npt.NDArray[np.float32], type_: GGMLQuantizationType) -> Bytes:
    """Return the bytes of a matrix, made by llama.cpp's quantiser, which takes files only."""
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        source, target = Path(folder) / "source.gguf", Path(folder) / "target.gguf"
        _write_probe(source, values)
        quantize(str(source), str(target), type_.name.lower(), n_threads=1)
        header = read_header(target)
        (info,) = header.tensors
        if info.type != type_:
            raise RuntimeError(f"llama.cpp made type {info.type} of {type_.name}; this type cannot be written")
        return np.fromfile(target, np.uint8, info.n_bytes, offset=info.offset)


def _write_probe(path: Path, values: npt.NDArray[np.float32]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(UNIT)
    writer.add_embedding_length(UNIT)
    writer.add_block_count(1)
    writer.add_feed_forward_length(UNIT)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor(_PROBE, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
