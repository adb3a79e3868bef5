"""One rendered page for all tests: bundling Vega takes a second."""

import polars as pl
import pytest

from reports import render
from sweeps.laws.types import Analysis
from tests.reports import synthetic


@pytest.fixture(scope="session")
def runs() -> pl.DataFrame:
    """Three budgets of six sizes and two architectures, one failed run, one run that repeats data."""
    table = synthetic.run_table()
    failed = table.head(1).with_columns(
        run_key=pl.lit("failed-key"),
        run_name=pl.lit("transformer-broken"),
        status=pl.lit("failed"),
        error=pl.lit("out of memory at step 12"),
        loss=pl.lit(None, dtype=pl.Float64),
    )
    repeated = pl.when(pl.int_range(pl.len()) == 0).then(5.5).otherwise(pl.col("epochs"))
    return pl.concat([table.with_columns(epochs=repeated), failed], how="diagonal")


@pytest.fixture(scope="session")
def analysis() -> Analysis:
    """The analysis of those runs, with flags in every place that can carry one."""
    return synthetic.with_flags(synthetic.analysis(synthetic.run_table()))


@pytest.fixture(scope="session")
def page(runs: pl.DataFrame, analysis: Analysis) -> str:
    """The whole report."""
    return render(runs, analysis, synthetic.provenance())
