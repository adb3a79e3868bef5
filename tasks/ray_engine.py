"""Trainings as tasks of a Ray cluster: one that is there, or one that is started here for the sweep."""

import logging
import socket
import threading
from types import TracebackType
from typing import Any, Self

from sweeps.resources import Resources
from tasks.cluster import Lost, conclude, prepare, train_there, wait
from tasks.errors import UserError
from xlstm.accounting import count_parameters
from xlstm.training.failures import Failure
from xlstm.training.job import RunResult, TrainJob

ANSWER_TIMEOUT_S = 10.0


class RayEngine:
    """A context manager; Ray ends the trainings of a driver that leaves or dies."""

    def __init__(self, resources: Resources, stopped: threading.Event) -> None:
        self.resources = resources
        self.stopped = stopped

    def __enter__(self) -> Self:
        try:
            import ray
        except ModuleNotFoundError as error:
            message = "resources.cluster.engine = ray: Ray is not installed: pip install 'isoflop[ray]'"
            raise UserError(message) from error
        assert self.resources.cluster is not None
        address = self.resources.cluster.address
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if address is None:
            settings |= {"include_dashboard": False}
        else:
            _require_answer(address)
        try:
            ray.init(address=address or "local", **settings)
        except ConnectionError as error:
            raise _silent(address) from error
        self._ray = ray
        # A process a run, as everywhere: what one leaves in memory is not the next one's.
        self._task = ray.remote(max_calls=1, max_retries=0)(train_there)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def run(self, job: TrainJob, *, timeout_s: float, hang_after_s: float, lease: int | None) -> RunResult:
        """Train to the end, where Ray finds room."""
        ray, log = self._ray, prepare(job)
        shares = {}
        if job.device.startswith("cuda"):
            alone = min(1.0, self.resources.gpus_of(count_parameters(job.spec.model)))
            shares["num_gpus"] = len(job.devices) if job.peers else alone
        cores = job.threads * len(job.devices)
        task = self._task.options(num_cpus=cores, name=job.run_name, **shares)
        reference = task.remote(job.to_json(), str(log))

        def is_over(seconds: float) -> bool:
            return bool(ray.wait([reference], timeout=seconds)[0])

        broken = wait(
            job, is_over=is_over, timeout_s=timeout_s, hang_after_s=hang_after_s, stopped=self.stopped
        )
        if broken is not None:
            ray.cancel(reference, force=True)
        return conclude(job, lambda: self._lost(reference, broken))

    def _lost(self, reference: Any, broken: Failure | None) -> Lost:
        ray = self._ray
        if broken is not None:
            return Lost(failure=broken, reason="ended on the cluster")
        try:
            ray.get(reference)
        except ray.exceptions.OutOfMemoryError as error:
            return Lost(failure=Failure.OUT_OF_MEMORY, reason=_first_line(error))
        except ray.exceptions.WorkerCrashedError as error:
            return Lost(failure=Failure.KILLED, reason=_first_line(error))
        except ray.exceptions.RayError as error:
            return Lost(failure=Failure.CRASHED, reason=_first_line(error))
        return Lost(failure=Failure.CRASHED, reason="ended without a result")


def _require_answer(address: str) -> None:
    """UserError where nobody listens at host:port: Ray itself would go on asking for minutes, then exit."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # `auto`, which Ray looks up by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise _silent(address) from error


def _silent(address: str | None) -> UserError:
    return UserError(f"resources.cluster.address = {address}: no Ray cluster answers there")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
