"""How much faster a model decodes with LoRA-Drop, and how near that is to what its bytes allow."""

from loradrop.bench.profile import OperationTime, StepProfile, profile
from loradrop.bench.report import BenchReport, PointBench, Spread
from loradrop.bench.run import bench
from loradrop.bench.step_bytes import StepBytes, step_bytes
from loradrop.evaluate.point import Point

__all__ = [
    "BenchReport",
    "OperationTime",
    "Point",
    "PointBench",
    "Spread",
    "StepBytes",
    "StepProfile",
    "bench",
    "profile",
    "step_bytes",
]
