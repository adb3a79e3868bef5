"""What the machine does during a training: CPU, memory, disk, network, and GPUs with the power they draw."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

SAMPLE_EVERY_S = 5.0
SAMPLES = 2
"""Samples in one logged mean: a transaction every ten seconds."""


@contextmanager
def system_metrics(run_id: str, tracking_uri: str) -> Iterator[None]:
    """MLflow's own monitor, in a thread, under `system/` in the run; it never fails a training.

    A run shorter than ten seconds has none. GPUs need nvidia-ml-py (NVIDIA) or pyrsmi (AMD).
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of its start and its end
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=SAMPLE_EVERY_S, samples_before_logging=SAMPLES, tracking_uri=tracking_uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
