"""The flow `isoflop-sweep`: from the name of a profile to a report.

prefect deployment run isoflop-sweep/quick
"""

from typing import Any

from prefect import flow
from prefect.states import State

from tasks import pipeline


@flow(name="isoflop-sweep", flow_run_name="{profile}")
@pipeline.refuse_politely
def isoflop_sweep(
    profile: str = "quick",
    overrides: dict[str, Any] | None = None,
    time_limit_s: float | None = None,
    report: bool = True,
) -> State:
    """Plan a sweep, train what is not trained yet, gather, fit and report.

    Args:
        profile: name of a shipped profile, or the path of a spec in YAML.
        overrides: dotted keys of the spec with other values, as {"resources.threads": 2}.
        time_limit_s: after so many seconds trainings leave checkpoints and the flow ends as Paused; the next
            flow run of the profile goes on from there.
        report: without, the flow ends with its last training: `scaling-report` makes the report, there or
            elsewhere.
    """
    with pipeline.open_sweep(profile, overrides, limit_s=time_limit_s) as sweep:
        corpus = pipeline.prepare_data(sweep)
        plan = pipeline.make_plan(sweep, corpus)
        pipeline.train_all(sweep, plan, corpus)
        if pipeline.is_paused(sweep):
            return pipeline.pause(sweep)
        runs = pipeline.gather_runs(sweep)
        analysis = pipeline.fit_all(sweep, runs)
        pipeline.hold_out(sweep, plan, corpus, analysis)
        if pipeline.is_paused(sweep):
            return pipeline.pause(sweep)
        page = pipeline.write_report(sweep, runs, analysis) if report else None
        return pipeline.conclude(sweep, runs, analysis, page)
