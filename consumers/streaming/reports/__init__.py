"""Reports on streaming inference: measured on a real video and a real model, told as values."""

from consumers.streaming.reports.capacity import report_capacity
from consumers.streaming.reports.check import report_check
from consumers.streaming.reports.chunk_sizes import report_chunks
from consumers.streaming.reports.compare import report_compare
from consumers.streaming.reports.delayed_steps import report_delayed
from consumers.streaming.reports.multi_round import report_multi_round
from consumers.streaming.reports.report import Bars, Curves, Report, Table
from consumers.streaming.reports.setting import Setting
from consumers.streaming.reports.source_video import SourceVideo

__all__ = [
    "Bars",
    "Curves",
    "Report",
    "Setting",
    "SourceVideo",
    "Table",
    "report_capacity",
    "report_check",
    "report_chunks",
    "report_compare",
    "report_delayed",
    "report_multi_round",
]
