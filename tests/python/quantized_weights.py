"""Random weights in ggml's types, as bytes, and what they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# of each type where its half-precision scales (and mins) stand in a block
SCALES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "iq4_nl": (0,),
    "q2_K": (80, 82),
    "q3_K": (108,),
    "q4_K": (0, 2),
    "q5_K": (0, 2),
    "q6_K": (208,),
    "iq4_xs": (0,),
    "mxfp4": (),
}
EXPONENT = {"mxfp4": 0}  # a byte instead


def block_size(weight_type: str) -> int:
    """Return how many weights a block has."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[weight_type.upper()]][0])


class Weights:
    """Rows of random blocks.

    Attributes
    ----------
    blocks : uint8 [rows, blocks of a row, bytes of a block]
    """

    def __init__(self, weight_type: str, rows: int, k: int, seed: int = 0) -> None:
        self.type, self.rows, self.k = weight_type, rows, k
        rng = np.random.default_rng(seed)
        size = int(GGML_QUANT_SIZES[GGMLQuantizationType[weight_type.upper()]][1])
        self.blocks = rng.integers(0, 256, (rows, k // block_size(weight_type), size), dtype=np.uint8)
        self.set_scales(rng.uniform(-1, 1, (len(SCALES[weight_type]), *self.blocks.shape[:2])) / 64)
        if weight_type in EXPONENT:
            self.set_exponents(rng.integers(110, 130, self.blocks.shape[:2]))

    def set_scales(self, values: npt.ArrayLike) -> None:
        """Set the scales and mins, [scales of a block, rows, blocks] or what is broadcast to it."""
        offsets = SCALES[self.type]
        halves = np.broadcast_to(np.asarray(values), (len(offsets), *self.blocks.shape[:2])).astype(np.float16)
        for half, offset in zip(halves, offsets, strict=True):
            self.blocks[..., offset : offset + 2] = half[..., None].view(np.uint8)

    def set_exponents(self, values: npt.ArrayLike) -> None:
        """Set the exponents of mxfp4, [rows, blocks] or what is broadcast to it."""
        self.blocks[..., EXPONENT[self.type]] = values

    def data(self) -> bytes:
        """Return the rows as they lie in a file."""
        return self.blocks.tobytes()

    def values(self) -> npt.NDArray[np.float64]:
        """Return the weights, [rows, k]."""
        flat = self.blocks.reshape(self.rows, -1)
        return dequantize(flat, GGMLQuantizationType[self.type.upper()]).astype(np.float64)


def whole_activations(rng: np.random.Generator, columns: int, k: int) -> npt.NDArray[np.float32]:
    """Return whole numbers from -127 to 127, the first of each 32 the greatest: quantising leaves them as they are."""
    x = rng.integers(-127, 128, (columns, k // 32, 32))
    x[..., 0] = -127
    return x.reshape(columns, k).astype(np.float32)
