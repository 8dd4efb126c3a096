"""What a model loses when it decodes with LoRA-Drop."""

from loradrop.evaluate.interval import Estimate
from loradrop.evaluate.measure import perplexity
from loradrop.evaluate.point import Point
from loradrop.evaluate.report import PointReport, Report, Scores

__all__ = ["Estimate", "Point", "PointReport", "Report", "Scores", "perplexity"]
