"""The tables of inference: the models of measured times, and these times against each other."""

from reports import numbers
from reports.cells import Cell, Table, estimate, integer, left, number, right
from reports.study.forms import milliseconds, percent, places, tera
from sweeps.laws import Estimate
from sweeps.study import Study, printed

_UNKNOWN = Estimate(value=float("nan"))


def runtimes(study: Study) -> Table:
    """Runtime fits by both methods."""
    known = {(p.kind, p.model): p for p in printed.RUNTIMES}
    rows = []
    for f in study.runtimes:
        was = known.get((f.kind, f.model))
        ours = {} if f.ours is None else f.ours.params
        rate = ours.get("flops_per_s" if f.kind == "ttft" else "bytes_per_s", _UNKNOWN)
        rows.append(
            (
                Cell("TTFT" if f.kind == "ttft" else "step"),
                Cell(f.model),
                integer(f.n),
                integer(f.unique_used),
                number(was.rate if was else None, tera),
                number(f.all_rows.rate, tera),
                *estimate(rate, tera),
                *estimate(ours.get("overhead", _UNKNOWN), milliseconds),
                *estimate(ours.get("per_sequence", _UNKNOWN), milliseconds),
                number(f.resampled.mape, percent),
                number(f.all_rows.mape, percent),
                number(f.ours_mape, percent),
                number(f.one_rate_mape, percent),
                Cell("their form is not identified" if f.refusal else "", mark="quiet"),
            )
        )
    return Table(
        key="runtimes",
        caption=(
            "t = work / rate + overhead + B per sequence. TTFT: FLOP/s. Step: bytes/s, of the cache for a"
            " Transformer (its weights are in the overhead), of all bytes for an xLSTM. One rate: the error"
            " of a Transformer's step with weights and cache at one bandwidth."
        ),
        columns=(
            *left("Time", "Model"),
            *right("Rows", "Used by theirs", "Rate published", "Theirs, all rows", "Rate ours", "Interval"),
            *right("Overhead", "Interval", "Per sequence", "Interval"),
            *right("Error published", "theirs, all rows", "ours", "one rate"),
            *left("Remark"),
        ),
        rows=tuple(rows),
    )


def ratios(study: Study) -> Table:
    """Measured times against each other."""
    return Table(
        key="time-ratios",
        caption="Measured time of the xLSTM over the Transformer's, one sequence: geometric mean.",
        columns=(*left("Time"), *right("Prefill", "Sizes", "Ratio", "Interval"), *left("Each size")),
        rows=tuple(
            (
                Cell("TTFT" if r.kind == "ttft" else "step"),
                integer(r.prefill),
                integer(len(r.sizes)),
                *estimate(r.mean, places(3)),
                Cell("; ".join(f"{s} {numbers.fixed(v, 3)}" for s, v in zip(r.sizes, r.ratios, strict=True))),
            )
            for r in study.time_ratios
        ),
    )
