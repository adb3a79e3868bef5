"""Specs of inference benchmarks, for whoever asks before Prefect is there."""

from pathlib import Path

from sweeps.inference.spec import BenchmarkSpec
from sweeps.inference.spec import load_benchmark as read_benchmark

__all__ = ["benchmark_name", "read_benchmark"]


def benchmark_name(spec: BenchmarkSpec, table: str | None = None) -> str:
    """Of a benchmark's folder and MLflow experiment: its spec's, or that of a table from elsewhere."""
    return f"inference-{spec.name if table is None else Path(table).stem}"
