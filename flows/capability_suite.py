"""The flow `capability-suite`: what LSTM, Transformer and xLSTM can do, and whether the papers' claims hold.

prefect deployment run capability-suite/quick
"""

from typing import Any

from prefect import flow
from prefect.states import State

from tasks import capability, pipeline


@flow(name="capability-suite", flow_run_name="{profile}")
@pipeline.refuse_politely
def capability_suite(profile: str = "quick", overrides: dict[str, Any] | None = None) -> State:
    """Plan the experiments, train and measure what no finished run holds yet, and report.

    Args:
        profile: name of a shipped profile, or the path of one in YAML.
        overrides: dotted keys of the profile with other values, as {"seeds": [0]}.
    """
    with capability.open_suite(profile, overrides) as suite:
        domains = capability.prepare_text(suite)
        runs = capability.plan(suite, domains)
        capability.train_all(suite, runs)
        results = capability.gather(suite, runs)
        report = capability.write_report(suite, results)
        return capability.conclude(suite, results, report)
