"""What `isoflop sweep` shows while it waits: a live table on a terminal, lines elsewhere."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tasks.progress import RunProgress, Status, SweepProgress, Training, time_left_s

SHOWN = 8
"""Trainings, retries and failures that are shown; of more, the number."""
WIDEST = 40
"""Marks of one kind in a row."""
ENDED: tuple[Status, ...] = ("finished", "cached", "failed")
MARKS = {
    "cached": ("●", "dim green"),
    "finished": ("●", "green"),
    "failed": ("✗", "red"),
    "running": ("◐", "yellow"),
    "paused": ("◌", "yellow"),
    "queued": ("·", "dim"),
}
LINE_EVERY_S = 15.0
"""Seconds between lines where nobody watches live, unless a run ends before."""


class Display:
    """Shows the progress of one flow run; a context manager, silent when left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._last_event: object = None
        self._last_time = 0.0

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: SweepProgress | None, trainings: Sequence[Training], state: str) -> None:
        """Show this moment. `state` is the flow run's, for as long as the flow has not spoken."""
        if self._live:
            self._live.update(picture(progress, trainings, state))
        else:
            self._print_line(progress, trainings, state)

    def _print_line(self, progress: SweepProgress | None, trainings: Sequence[Training], state: str) -> None:
        now = time.monotonic()
        line = summary(progress, state)
        event = (progress.stage, progress.count(*ENDED)) if progress else state
        if event == self._last_event and (not trainings or now - self._last_time < LINE_EVERY_S):
            return
        self._last_event, self._last_time = event, now
        details = [_running(training) for training in trainings if training.steps]
        left = _left(progress, trainings)
        self._console.print(
            "; ".join([line, *details, *([left] if left else [])]), soft_wrap=True, highlight=False
        )


def summary(progress: SweepProgress | None, state: str) -> str:
    """One line: the stage and the counts."""
    if progress is None:
        return f"flow run is {state.lower()}"
    if not progress.runs:
        return progress.stage
    done = progress.count("finished", "cached")
    parts = [f"{progress.stage}: {done} of {len(progress.runs)} runs done"]
    cached, failed, running, paused = (progress.count(s) for s in ("cached", "failed", "running", "paused"))
    parts += [f"{cached} of them cached"] if cached else []
    parts += [f"{running} running"] if running else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{paused} paused"] if paused else []
    return ", ".join(parts)


def picture(progress: SweepProgress | None, trainings: Sequence[Training], state: str) -> RenderableType:
    """The live display: counts, budgets, the running trainings, the last failures, the time left.

    As high for 200 runs as for 20: rows beyond a few are counted and not shown.
    """
    parts: list[RenderableType] = [Text(summary(progress, state), style="bold")]
    if progress is None or not progress.runs:
        return Group(*parts)
    ended = progress.count(*ENDED)
    parts.append(ProgressBar(total=len(progress.runs), completed=ended, width=60))
    if any(run.budget for run in progress.runs):
        parts.append(_budgets(progress.runs))
    if trainings:
        parts.append(_table(trainings[:SHOWN]))
        parts += _more(len(trainings) - SHOWN, "running")
    again = [run for run in progress.runs if run.status == "running" and run.attempt > 1]
    failed = [run for run in progress.runs if run.status == "failed"]
    parts += [
        Text(f"attempt {run.attempt}: {run.name}: {run.error}", style="yellow") for run in again[:SHOWN]
    ]
    parts += [Text(f"failed: {run.name}: {run.error}", style="red") for run in failed[-SHOWN:]]
    parts += _more(len(failed) - SHOWN, "failed")
    left = _left(progress, trainings)
    if left:
        parts.append(Text(left))
    return Group(*parts)


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"and {count} more {what}", style="dim")] if count > 0 else []


def _budgets(runs: Sequence[RunProgress]) -> Table:
    """One row a budget, a mark a run where there is room for it: how the sweep climbs."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for budget in sorted({run.budget for run in runs}):
        there = [run for run in runs if run.budget == budget]
        done = sum(run.status in ("finished", "cached") for run in there)
        marks = Text()
        for status, (mark, style) in MARKS.items():
            count = sum(run.status == status for run in there)
            marks.append(mark * min(count, WIDEST) + ("…" if count > WIDEST else ""), style=style)
        table.add_row(f"{budget:.3g} FLOPs", f"{done} of {len(there)}", marks)
    return table


def _table(trainings: Sequence[Training]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("running", "step", "loss", "tokens/s", "left"):
        table.add_column(title, justify="left" if title == "running" else "right", no_wrap=True)
    for training in trainings:
        table.add_row(
            training.name,
            f"{training.step:,} of {training.steps:,}" if training.steps else "starting",
            "" if training.loss is None else f"{training.loss:.3f}",
            "" if training.tokens_per_s is None else f"{training.tokens_per_s:,.0f}",
            "" if training.eta_s is None else duration(training.eta_s),
        )
    return table


def _running(training: Training) -> str:
    loss = "" if training.loss is None else f" loss {training.loss:.3f}"
    return f"{training.name} step {training.step} of {training.steps}{loss}"


def _left(progress: SweepProgress | None, trainings: Sequence[Training]) -> str:
    left = time_left_s(progress, trainings) if progress is not None and progress.stage == "training" else None
    return "" if left is None else f"about {duration(left)} left, until {clock(left)}"


def clock(seconds: float) -> str:
    """The local time so many seconds from now: `14:05`, or `Fri 14:05` where it is not today."""
    now = datetime.now()
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %d %b %H:%M}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
