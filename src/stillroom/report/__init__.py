"""The report: one self-contained HTML page drawn from Findings."""

from stillroom.report.compare import compare
from stillroom.report.page import write_report

__all__ = ["compare", "write_report"]
