"""Lanes: the Ray actors of a build and the loop that feeds them."""

from pipeline.lanes.build import run_build
from pipeline.lanes.cluster import connection
from pipeline.lanes.report import BuildReport, LaneProgress, Progress
from pipeline.lanes.scheduler import TimeLimits

__all__ = ["BuildReport", "LaneProgress", "Progress", "TimeLimits", "connection", "run_build"]
