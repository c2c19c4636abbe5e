"""Lanes: the Ray actors of a build and the loop that feeds them."""

from pipeline.lanes.build import run_build
from pipeline.lanes.cluster import connection
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.report import BuildReport, LaneProgress, Progress, failure_to_json

__all__ = ["BuildReport", "LaneProgress", "Progress", "TimeLimits", "connection", "failure_to_json", "run_build"]
