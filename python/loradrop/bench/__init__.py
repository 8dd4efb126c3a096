"""How much faster a model decodes with LoRA-Drop, and how near that is to what its bytes allow."""

from loradrop.bench.batch_report import BatchReport, BatchTime, ContextBatches
from loradrop.bench.batches import batches
from loradrop.bench.machine_floor import MachineFloor
from loradrop.bench.profile import OperationTime, StepProfile, profile
from loradrop.bench.report import BenchReport, PointBench, Spread
from loradrop.bench.run import bench
from loradrop.bench.step_bytes import StepBytes, step_bytes
from loradrop.evaluate.point import Point

__all__ = [
    "BatchReport",
    "BatchTime",
    "BenchReport",
    "ContextBatches",
    "MachineFloor",
    "OperationTime",
    "Point",
    "PointBench",
    "Spread",
    "StepBytes",
    "StepProfile",
    "batches",
    "bench",
    "profile",
    "step_bytes",
]
