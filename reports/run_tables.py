"""Tables of the runs themselves: all of them, those that failed, and what they took."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from reports import numbers
from reports.cells import Cell, Table, integer, left, number, right
from reports.tables import group_cells, group_columns
from reports.view import View, finished

_RUN_ORDER = ("context_length", "arch", "budget", "N")


def runs(view: View) -> Table:
    """Every run of the sweep, failed ones included."""
    linked = ", each linked to its page in MLflow" if view.runs["url"].count() else ""
    return Table(
        key="runs",
        caption=(
            f"All {view.runs.height} runs{linked}. C is the training compute that a run really spent (6 N D"
            " where the table does not say); its error is against the budget."
        ),
        columns=(
            *left("Run"),
            *group_columns(view),
            *right("N", "D", "C", "Error", "Loss", "Bits a byte", "Steps", "Peak lr", "Time"),
            *left("Status"),
        ),
        rows=tuple(
            _run_cells(view, row) for row in view.runs.sort(_RUN_ORDER, nulls_last=True).iter_rows(named=True)
        ),
    )


def _run_cells(view: View, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    loss, bpb = row["loss"], row["bpb"]
    if not numbers.known(bpb) and numbers.known(loss):
        bpb = view.bits_per_byte(loss)
    return (
        Cell(row["run_name"], href=row["url"]),
        *group_cells(view, row["arch"], row["context_length"]),
        number(row["N"], numbers.count),
        number(row["D"], numbers.count),
        number(row["train_flops"], numbers.flops),
        number(row["gap"], lambda v: f"{numbers.fixed(100 * (v or 0.0), 1)}%"),
        number(loss, lambda v: numbers.fixed(v, 4)) if numbers.known(loss) else Cell("none", mark="bad"),
        number(bpb, lambda v: numbers.fixed(v, 3)),
        integer(row["steps"]),
        number(row["peak_lr"], lambda v: f"{v:.2g}"),
        number(row["wall_time_s"], numbers.duration),
        Cell(row["status"], mark="" if row["status"] == "finished" else "bad"),
    )


def failed_runs(view: View) -> Table:
    """Runs without a loss, each with its reason."""
    failed = view.runs.filter(~finished()).sort(_RUN_ORDER, nulls_last=True)
    return Table(
        key="failed-runs",
        caption="Runs that gave no loss, and why. The fits go on without them.",
        columns=(
            *left("Run"),
            *group_columns(view),
            *right("Budget", "N"),
            *left("Status", "Reason"),
        ),
        rows=tuple(
            (
                Cell(row["run_name"], href=row["url"]),
                *group_cells(view, row["arch"], row["context_length"]),
                number(row["budget"], numbers.flops),
                number(row["N"], numbers.count),
                Cell(row["status"], mark="bad"),
                Cell(row["error"] or _reason(row["status"])),
            )
            for row in failed.iter_rows(named=True)
        ),
    )


def _reason(status: str) -> str:
    return "its loss is not a finite number" if status == "finished" else "no reason was recorded"


def training_costs(view: View) -> Table:
    """What the trainings of each group took."""
    rows = [
        (*group_cells(view, group.arch, group.context_length), *_spent(view, place))
        for place, group in enumerate(view.groups)
    ]
    return Table(
        key="training-costs",
        caption=(
            "What the finished trainings took: in all, and the median run."
            + (
                " FLOPs are those of the runs by themselves, as the fits count them; fewer were spent, since"
                " runs branched off shared trunks."
                if _is_shared(view)
                else ""
            )
        ),
        columns=(
            *group_columns(view),
            *right("Runs", "FLOPs", *(["Spent"] if _is_shared(view) else []), "Hours"),
            *right("Tokens a second", "FLOP/s", "Memory"),
            *left("Device"),
        ),
        rows=tuple(rows) if view.runs["wall_time_s"].count() else (),
    )


def _spent(view: View, place: int) -> tuple[Cell, ...]:
    done = view.runs.filter(finished() & (pl.col("g") == place))
    timed = done.filter(pl.col("wall_time_s") > 0)
    spent = done["spent_flops"].fill_null(done["train_flops"])
    rate = (timed["spent_flops"].fill_null(timed["train_flops"]) / timed["wall_time_s"]).median()
    hours = float(timed["wall_time_s"].sum()) / 3600
    devices = sorted(set(done["device"].drop_nulls().to_list()))
    return (
        integer(done.height),
        number(float(done["train_flops"].sum()), numbers.flops),
        *([number(float(spent.sum()), numbers.flops)] if _is_shared(view) else []),
        number(hours or None, numbers.ratio),
        number(_median(done, "tokens_per_s"), numbers.count),
        number(rate if isinstance(rate, float) else None, numbers.flops),
        number(_median(done, "memory_bytes"), numbers.size),
        Cell(", ".join(devices)),
    )


def _is_shared(view: View) -> bool:
    """Whether some run was spared steps that it shares with another."""
    return bool((view.runs["spent_flops"] < 0.999 * view.runs["train_flops"]).any())


def _median(table: pl.DataFrame, column: str) -> float | None:
    value = table[column].median()
    return value if isinstance(value, float) else None
