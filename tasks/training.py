"""One planned run after another: done already, or trained in a process of its own on a slot."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from sweeps.plan import PlannedRun
from sweeps.spec import SweepSpec
from tasks import tracking
from tasks.devices import Slot, SlotPool
from tasks.launcher import Launcher
from tasks.locks import run_lock
from tasks.retries import next_attempt
from tasks.state import State
from xlstm.data import Corpus
from xlstm.training.failures import Failure
from xlstm.training.job import RunResult, TrainJob

OnRetry = Callable[[int, str], None]


class Trainer:
    """Trains the runs of a sweep. Threads may share one; leaving it ends every training that still runs."""

    def __init__(self, spec: SweepSpec, state: State, corpus: Corpus, pool: SlotPool) -> None:
        self.spec = spec
        self.state = state
        self.corpus = corpus
        self.pool = pool
        self._exit = ExitStack()
        self._guard = threading.Lock()
        self._launcher: Launcher | None = None

    def __enter__(self) -> Self:
        tracking.ensure_experiment(self.state, self.spec.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.stop()
        self._exit.__exit__(kind, error, trace)

    def is_finished(self, run: PlannedRun) -> bool:
        """Whether MLflow holds a finished run of this key."""
        return tracking.finished_run(self.state, run.run_key) is not None

    @contextmanager
    def take(self, run: PlannedRun) -> Iterator[Slot]:
        """A slot, and this run for this flow alone; waits for both."""
        with self.pool.take() as slot, run_lock(self.state, run.run_key):
            yield slot

    def train(self, run: PlannedRun, slot: Slot, say: OnRetry = lambda attempt, error: None) -> RunResult:
        """Train to the end, trying again by the rules of `retries`; a failure that stays is a failed result.

        `say` hears of every further attempt, and of the error before it.
        """
        resources = self.spec.resources
        failures: list[Failure] = []
        micro_batch: int | None = None
        while True:
            job = self._job(run, slot, attempt=len(failures) + 1, micro_batch=micro_batch)
            result = self._launch().run(
                job, timeout_s=resources.timeout_s, hang_after_s=resources.hang_after_s
            )
            if result.failure is None:
                return result
            failures.append(result.failure)
            retry = next_attempt(failures, run.spec.batch_size, micro_batch)
            if retry is None or self.pool.stopped.wait(retry.pause_s):
                return result
            micro_batch = retry.micro_batch
            say(len(failures) + 1, result.error or retry.reason)

    def _launch(self) -> Launcher:
        """The launcher, started by the first run that needs it: it imports torch, which takes seconds."""
        with self._guard:
            if self._launcher is None:
                self._launcher = self._exit.enter_context(Launcher())
            return self._launcher

    def _job(self, run: PlannedRun, slot: Slot, *, attempt: int, micro_batch: int | None) -> TrainJob:
        resources = self.spec.resources
        return TrainJob(
            spec=run.spec,
            data_folder=self.corpus.folder,
            run_dir=self.state.run_dir(run.run_key),
            tracking_uri=self.state.tracking_uri,
            experiment=self.spec.name,
            run_name=run.name,
            tags=run.tags,
            device=slot.device,
            threads=resources.threads,
            micro_batch=micro_batch,
            attempt=attempt,
            checkpoint_every_s=resources.checkpoint_every_s,
            keep_final_checkpoint=resources.keep_final_checkpoint,
        )
