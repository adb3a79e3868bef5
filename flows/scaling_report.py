"""The flow `scaling-report`: fits and report again from runs that are there, no training.

prefect deployment run scaling-report/quick
prefect deployment run scaling-report/quick --param table=runs.csv
prefect deployment run scaling-report/paper
"""

from typing import Any

from prefect import flow
from prefect.states import State

from tasks import pipeline, study


@flow(name="scaling-report", flow_run_name="{profile}")
@pipeline.refuse_politely
def scaling_report(
    profile: str = "quick",
    table: str | None = None,
    columns: dict[str, str] | None = None,
    units: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> State:
    """Gather the runs of a sweep, or read a run table, and fit and report as the profile says.

    The profile `paper` reports the published study that `isoflop import xlstm-scaling-laws` has brought in.

    Args:
        profile: whose runs, and whose law settings.
        table: a CSV or Parquet file of runs trained anywhere, with the columns of the run table.
        columns: names of the run table with those of the file, as {"N": "params"}.
        units: columns with what they count, as {"N": "M"} for millions.
        overrides: dotted keys of the spec with other values, as {"laws.resamples": 4000}.
    """
    with pipeline.open_sweep(profile, overrides, table=table) as sweep:
        if study.is_study(sweep):
            return study.report_study(sweep)
        if table is None:
            runs = pipeline.gather_runs(sweep)
        else:
            runs = pipeline.read_runs(sweep, table, columns, units)
        analysis = pipeline.fit_all(sweep, runs)
        report = pipeline.write_report(sweep, runs, analysis)
        return pipeline.conclude(sweep, runs, analysis, report)
