"""The flow `inference-benchmark`: time to first token and step time over a grid, fitted, and what they cost.

prefect deployment run inference-benchmark/quick
prefect deployment run inference-benchmark/gpu --param table=measurements.parquet
prefect deployment run inference-benchmark/paper
"""

from typing import Any

from prefect import flow
from prefect.states import State

from tasks import inference, pipeline


@flow(name="inference-benchmark", flow_run_name="{profile}")
@pipeline.refuse_politely
def inference_benchmark(
    profile: str = "quick", table: str | None = None, overrides: dict[str, Any] | None = None
) -> State:
    """Measure what is not measured yet, fit the runtime models, and report.

    The profile `paper` reports the published measurements, once `isoflop import xlstm-scaling-laws` has
    brought them in.

    Args:
        profile: name of a shipped profile, or the path of a spec in YAML.
        table: measurements made elsewhere, Parquet, CSV, or the JSON of benchmarks/inference.py.
        overrides: keys of the spec with other values, as {"repetitions": 5}.
    """
    with inference.open_benchmark(profile, overrides, table=table) as benchmark:
        if inference.measures(benchmark):
            points = inference.plan(benchmark)
            rows = inference.measure_all(benchmark, points)
            measured = inference.gather(benchmark, rows)
            limits = inference.limits_of(benchmark)
        else:
            measured, limits = inference.read(benchmark), {}
        analysis = inference.fit(benchmark, measured, limits)
        report = inference.write_report(benchmark, analysis)
        return inference.conclude(benchmark, analysis, report)
