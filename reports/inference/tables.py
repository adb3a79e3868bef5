"""The tables of an inference benchmark."""

import numpy as np

from reports import numbers
from reports.cells import Cell, Table, estimate, integer, left, number, right, yes
from reports.inference.figures import few
from reports.palette import arch_label
from sweeps.inference.analysis import InferenceAnalysis
from sweeps.inference.crossover import LONGEST, SHORTEST, Crossover
from sweeps.inference.runtime import TERMS, UNITS, measured, works
from sweeps.laws import Estimate

KINDS = {"ttft": "first token", "step_time": "decode step"}
TERM_NAMES = {
    "maps": "linear maps and head",
    "mixing": "sequence mixing",
    "bytes": "bytes moved",
    "weights": "weights read",
    "state": "state or cache moved",
    "flops": "FLOPs of the step",
    "scores": "scores of attention",
    "keys": "walk along the keys, each",
    "blocks": "overhead of a block",
    "batched": "more of it, of a batch",
    "constant": "constant",
}


def rates(analysis: InferenceAnalysis) -> Table:
    """The coefficients of the runtime models."""
    rows = []
    for (arch, kind), model in analysis.models.items():
        shares = np.median(model.shares(works(kind, measured(analysis.table, arch, kind))), axis=0)
        for name, rate in model.rates().items():
            share = float(shares[TERMS[kind].index(name)])
            rows.append(
                (
                    Cell(arch_label(arch), owner=("arch", arch)),
                    Cell(KINDS[kind]),
                    Cell(TERM_NAMES[name]),
                    Cell(rate_text(rate.value, UNITS[name]), rate.value if np.isfinite(rate.value) else None),
                    Cell(_interval(rate, UNITS[name]), mark="quiet"),
                    number(share, lambda v: f"{100 * (v or 0):.0f} %"),
                )
            )
    return Table(
        key="rates",
        caption=(
            "The runtime models: a time is the sum of each work over its rate, and of the overheads. Share:"
            " of the predicted time, median over the points. Works that grow together share their time as"
            " fits best: a rate may be none of the device."
        ),
        columns=(*left("Architecture", "Time", "Work"), *right("Rate or time", "interval", "Share")),
        rows=tuple(rows),
    )


def errors(analysis: InferenceAnalysis) -> Table:
    """How far the models miss, on the points fitted and on those held out."""
    rows = []
    for (arch, kind), model in analysis.models.items():
        unseen = model.held_out
        rows.append(
            (
                Cell(arch_label(arch), owner=("arch", arch)),
                Cell(KINDS[kind]),
                integer(model.n_points),
                number(100 * model.median_error, lambda v: f"{v:.1f} %"),
                number(100 * model.largest_error, lambda v: f"{v:.0f} %"),
                integer(None if unseen is None else len(unseen.observed)),
                number(None if unseen is None else 100 * unseen.median_error, lambda v: f"{v:.1f} %"),
            )
        )
    return Table(
        key="errors",
        caption=(
            "Relative errors of the runtime models. Held out: points that a fit to the others did not see."
        ),
        columns=(
            *left("Architecture", "Time"),
            *right("Points", "Median error", "Largest", "Held out", "Median error of these"),
        ),
        rows=tuple(rows),
    )


def crossovers(analysis: InferenceAnalysis) -> Table:
    """From which length the xLSTM is ahead, by size and batch."""
    batches = few(sorted({found.batch_size for found in analysis.crossovers}))
    rows = [
        (
            Cell(KINDS[found.kind]),
            Cell(found.size),
            integer(found.batch_size),
            Cell(verdict(found)),
            Cell(length_span(found), mark="quiet"),
            _measured_there(found),
        )
        for found in analysis.crossovers
        if found.batch_size in batches
    ]
    return Table(
        key="crossovers",
        caption=(
            "From which length on the mLSTM is faster than the Transformer of its size, by the runtime"
            f" models, looked for between {SHORTEST} and {LONGEST:,} tokens."
        ),
        columns=(
            *left("Time", "Size"),
            *right("Batch"),
            *left("mLSTM is faster", "interval", "Measured there"),
        ),
        rows=tuple(rows),
    )


def costs(analysis: InferenceAnalysis) -> Table:
    """The cheapest model of each architecture at each loss."""
    rows = [
        (
            number(cost.loss, numbers.loss),
            Cell(arch_label(cost.arch), owner=("arch", cost.arch)),
            *estimate(cost.N, numbers.count),
            number(cost.D.value, numbers.count),
            *(number(part.value, hours) for part in (cost.train_s, cost.serve_s, cost.total_s)),
            Cell(numbers.span(cost.total_s, hours), mark="quiet"),
            Cell(_limits_of(cost.at_ratio_limit, cost.within_sizes), mark="quiet"),
        )
        for cost in analysis.costs
    ]
    return Table(
        key="costs",
        caption=(
            "The model of least device time, training and serving together, at each loss. No model is chosen"
            " that sees more tokens a parameter than some run of the sweep did."
        ),
        columns=(
            *right("Loss"),
            *left("Architecture"),
            *right("N", "interval", "D", "Training", "Serving", "Together", "interval"),
            *left("Beside the runs"),
        ),
        rows=tuple(rows),
    )


def measurements(analysis: InferenceAnalysis) -> Table:
    """Every point, finished or not."""
    rows = [
        (
            Cell(arch_label(row["arch"]), owner=("arch", row["arch"])),
            Cell(row["model"]),
            integer(row["prefill_length"]),
            integer(row["batch_size"]),
            number(row["ttft_s"], seconds),
            number(row["step_time_s"], seconds),
            number(_spread(row["step_time_spread"]), lambda v: f"{v:.1f} %"),
            number(row["memory_bytes"], numbers.size),
            Cell(row["error"] or "", mark="bad" if row["error"] else ""),
        )
        for row in analysis.table.iter_rows(named=True)
    ]
    return Table(
        key="measurements",
        caption=(
            "Every point. Spread: of the step time over the repetitions, largest less smallest over median."
        ),
        columns=(
            *left("Architecture", "Size"),
            *right("Prefill", "Batch", "First token", "Step", "Spread", "Memory"),
            *left("Why not"),
        ),
        rows=tuple(rows),
    )


def verdict(found: Crossover) -> str:
    """In words: `from 2,640 tokens on`."""
    if found.verdict == "always faster":
        return "at every length"
    if found.verdict == "never faster":
        return "at no length"
    return f"from {_tokens(found.length.value)} tokens on"


def length_span(found: Crossover) -> str:
    """The interval of a length; its ends may lie outside of what was looked at."""
    low, high = found.length.low, found.length.high
    if low == high:
        return ""
    first = f"{_tokens(low)}" if low > 0 else f"below {SHORTEST}"
    last = f"{_tokens(high)}" if np.isfinite(high) else f"beyond {LONGEST:,}"
    return f"{first} to {last}"


def rate_text(value: float, unit: str) -> str:
    """A rate or a time: `3.24 TB/s`, `60.2 µs`, `takes no time`."""
    if not np.isfinite(value) or (unit == "s" and value == 0):
        return "takes no time"
    return seconds(value) if unit == "s" else numbers.rate(value, unit)


def seconds(value: float | None) -> str:
    """A time of any size at three digits: 60.2 µs, 5.13 ms, 1.20 s."""
    if not numbers.known(value):
        return numbers.NOT_KNOWN
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def hours(value: float | None) -> str:
    """Device time at three digits: 0.0123 h, 24.5 k h."""
    return f"{numbers.count(value / 3600)} h" if numbers.known(value) else numbers.NOT_KNOWN


def _interval(rate: Estimate, unit: str) -> str:
    ends = [rate_text(end, unit) for end in sorted((rate.low, rate.high))]
    return "" if ends[0] == ends[1] else " to ".join(ends)


def _measured_there(found: Crossover) -> Cell:
    if found.verdict != "crosses":
        return Cell("")
    return yes(True) if found.within_data else Cell("no, extrapolated", mark="quiet")


def _tokens(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}"


def _spread(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _limits_of(at_ratio_limit: bool, within_sizes: bool) -> str:
    said = [] if within_sizes else ["N beyond the runs"]
    said += ["at the largest D/N of the runs"] if at_ratio_limit else []
    return "; ".join(said)
