"""The report: figures, tables and plain words from a run table, its analysis and its provenance."""

from reports.page import render, write
from reports.provenance import Provenance

__all__ = ["Provenance", "render", "write"]
