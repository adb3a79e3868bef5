"""The live page of a sweep and its artifact: made anew every so often while the runs train."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import polars as pl

from reports.live import Cell, Live, Step, label, markdown, page
from sweeps.gather import gather
from sweeps.laws import LawSettings
from sweeps.provisional import Provisional, provisional
from tasks.progress import SweepProgress, read_progress, read_trainings, time_left_s
from tasks.state import State
from xlstm.training.files import write_atomically

FILE = "live.html"
EVERY_S = 15.0
_SHARE = 0.1
"""Of the time that may go into the page: an update that takes 3 s makes the next one wait 30."""
_REMEMBERED = 40
"""Steps of a group's history that are shown."""


class LivePage:
    """Keeps `sweeps/<name>/live.html` true, and remembers how the intervals shrank."""

    def __init__(self, state: State, sweep: str, settings: LawSettings) -> None:
        self.state = state
        self.sweep = sweep
        self.settings = settings
        self._history: dict[str, list[Step]] = {}
        self._laws: tuple[Provisional, ...] = ()
        self._fitted = -1

    @property
    def path(self) -> Path:
        return self.state.sweep_dir(self.sweep) / FILE

    def update(self) -> Live | None:
        """Write the page; None before the sweep has a plan."""
        progress = read_progress(self.state, self.sweep)
        if progress is None or not progress.runs:
            return None
        done = progress.count("finished", "cached")
        if done != self._fitted:
            self._fit()
            self._fitted = done
        live = self._moment(progress)
        write_atomically(self.path, page(live))
        return live

    def _fit(self) -> None:
        """The law of the runs that MLflow holds now."""
        plan = pl.read_parquet(self.state.sweep_dir(self.sweep) / "plan.parquet")
        self._laws = provisional(gather(plan, self.state.tracking_uri), self.settings)
        for law in self._laws:
            if law.optimum is None:
                continue
            steps = self._history.setdefault(label(law), [])
            N = law.optimum.N
            if not steps or steps[-1].runs != law.runs:
                steps.append(Step(runs=law.runs, N=N.value, low=N.low, high=N.high))

    def _moment(self, progress: SweepProgress) -> Live:
        trainings = read_trainings(self.state, progress)
        return Live(
            sweep=self.sweep,
            stage=progress.stage,
            at=f"{datetime.now().astimezone():%H:%M:%S}",
            cells=_cells(progress),
            left_s=time_left_s(progress, trainings),
            trainings=[f"{t.name}: step {t.step:,} of {t.steps:,}" for t in trainings],
            failures=[
                (run.name, run.error or "no reason was recorded")
                for run in progress.runs
                if run.status == "failed"
            ],
            laws=self._laws,
            history=[(name, steps[-_REMEMBERED:]) for name, steps in self._history.items()],
        )


def _cells(progress: SweepProgress) -> list[Cell]:
    kinds = sorted({(run.arch, run.budget) for run in progress.runs})
    cells = []
    for arch, budget in kinds:
        own = [run for run in progress.runs if (run.arch, run.budget) == (arch, budget)]
        count = {
            status: sum(run.status == status for run in own)
            for status in ("finished", "cached", "running", "failed")
        }
        cells.append(
            Cell(
                arch=arch,
                budget=budget,
                done=count["finished"] + count["cached"],
                running=count["running"],
                failed=count["failed"],
                planned=len(own),
            )
        )
    return cells


@contextmanager
def kept_live(
    live: LivePage,
    publish: Callable[[str], object],
    warn: Callable[[str], object],
    *,
    every_s: float = EVERY_S,
) -> Iterator[None]:
    """Update the page, and `publish` its Markdown, while the body runs, and once at its end.

    In a thread with the caller's context. An error there is told by `warn` and ends the page, not the sweep.
    """
    stop = threading.Event()

    def step() -> float:
        started = time.monotonic()
        moment = live.update()
        if moment is not None:
            publish(markdown(moment))
        return (time.monotonic() - started) / _SHARE

    def run() -> None:
        try:
            while not stop.wait(max(every_s, step())):
                pass
            step()
        except Exception as error:
            warn(f"the live page of the sweep stopped: {error}")

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="live page", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
