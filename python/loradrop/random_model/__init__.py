"""Models of random weights, of any shape: speed and memory can be measured without a download."""

from loradrop.random_model.corrector import RandomCorrector
from loradrop.random_model.shape import SHAPES, Shape
from loradrop.random_model.write import write_random_model

__all__ = ["SHAPES", "RandomCorrector", "Shape", "write_random_model"]
