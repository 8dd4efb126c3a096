"""What each layer of a model does, and what it costs to drop it."""

from loradrop.analyze.options import AnalyzeOptions
from loradrop.analyze.report import Analysis, LayerReport
from loradrop.analyze.run import analyze

__all__ = ["Analysis", "AnalyzeOptions", "LayerReport", "analyze"]
