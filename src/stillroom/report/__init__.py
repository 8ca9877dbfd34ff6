"""The report: one self-contained HTML page drawn from Findings."""

from stillroom.report.compare import compare, read_metrics, told_from
from stillroom.report.page import write_report

__all__ = ["compare", "read_metrics", "told_from", "write_report"]
