"""The diagnostics of a group in sentences, for a terminal: what was checked and what came out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sweeps.laws.types import GroupAnalysis, LawFit

Rows = Sequence[Mapping[str, Any]]


def fit_sentences(fit: LawFit) -> Iterator[str]:
    """How sure one can be that this is the minimum, and what it rests on."""
    d = fit.diagnostics
    yield (
        f"{d['agreeing_starts']} of {d['n_starts']} starts end here (runner-up {d['runner_up_excess']:+.1e});"
        f" scaled gradient {d['gradient_norm']:.1e}"
    )
    yield (
        f"condition number of J'J {d['condition']:.2g}; correlation of {d['most_correlated']}"
        f" {d['largest_correlation']:+.4f}"
    )
    if "huber_delta" in d:
        yield f"{d['quadratic_zone_share']:.0%} of the residuals lie in Huber's quadratic zone"
    yield (
        f"residuals of ln L: root mean square {d['residual_rms']:.2e}, mean {d['residual_mean']:+.1e},"
        f" R^2 {d['r2']:.6f}"
    )
    if "leverage_shift" in d:
        yield (
            f"without row {d['leverage_row']}, the one that matters most, {d['leverage_quantity']} moves by"
            f" {d['leverage_shift']:+.2g}; without the lowest losses by {d['lowest_loss_shift']:+.2g}"
            f" (standard error {d['standard_error']:.2g})"
        )


def group_sentences(group: GroupAnalysis) -> Iterator[str]:
    """A sentence a diagnostics table, with the numbers that matter or the reason why there are none."""
    for name, say in _SENTENCES.items():
        rows = _rows(group, name)
        if rows:
            yield f"{name.replace('_', ' ')}: {rows[0]['note'] if set(rows[0]) == {'note'} else say(rows)}"


def _rows(group: GroupAnalysis, name: str) -> list[Mapping[str, Any]]:
    rows = group.diagnostics.get(name)
    if not isinstance(rows, list | tuple):
        return []
    return [{key: _cell(value) for key, value in row.items()} for row in rows]


def _cell(value: Any) -> Any:
    """A cell as it was before a JSON file turned nan into null and infinity into text."""
    if value is None:
        return float("nan")
    return float(value) if value in ("inf", "-inf") else value


def _hold_out(rows: Rows) -> str:
    first = rows[0]
    return (
        f"{first['n_test']} runs from {first['cut']:.3g} FLOPs on are predicted by the law fitted below with"
        f" a mean error of {first['error']:.3%} (bias {first['bias']:+.3%}); the lowest loss seen before"
        f" misses by {first['baseline_error']:.3%}"
    )


def _selection(rows: Rows) -> str:
    ranked = ", ".join(
        f"{row['law']} +{row['aicc_difference']:.1f} ({_share(row['top_budget_error'])})"
        for row in rows
        if np.isfinite(row["aicc"])
    )
    return (
        f"AICc above the best, error at the held-out top budget in brackets: {ranked}; points of one sweep"
        " are dependent, so AICc ranks and does not test"
    )


def _sensitivity(rows: Rows) -> str:
    found = [row for row in rows if np.isfinite(row["a"])]
    if not found:
        return "no variant reached a minimum"
    a, N = ([row[name] for row in found] for name in ("a", "N"))
    objectives, subsets, sizes = (len({row[key] for row in rows}) for key in ("objective", "subset", "size"))
    return (
        f"a lies between {min(a):.4f} and {max(a):.4f}, N* at the largest compute between {min(N):.3g} and"
        f" {max(N):.3g}, over {objectives} objectives x {subsets} subsets x {sizes} definitions of N"
    )


def _bias(rows: Rows) -> str:
    last = rows[-1]
    return (
        f"on this very grid, without noise, a is off by {last['error_of_a']:+.4f} and N* at"
        f" {last['target']:.3g} FLOPs by {last['relative_error_of_N']:+.2%}"
    )


def _approach_1(rows: Rows) -> str:
    parts = (f"{row['quantity']}* ~ C^{row['exponent']:.4f}" for row in rows)
    return f"{', '.join(parts)} through {rows[0]['points_on_the_frontier']} runs on the envelope"


def _profile(rows: Rows) -> str:
    return "; ".join(
        f"{row['quantity']} {row['value']:.6g} [{row['low']:.6g}, {row['high']:.6g}]"
        + (f" ({row['note']})" if row["note"] else "")
        for row in rows
    )


def _serving(rows: Rows) -> str:
    last = rows[-1]
    return (
        f"to serve {last['served_tokens']:.3g} tokens at the loss of {last['loss_of_budget']:.3g} FLOPs,"
        f" train N {last['N']:.4g} [{last['N_low']:.3g}, {last['N_high']:.3g}] on D {last['D']:.4g}: training"
        f" and inference cost {last['saving']:.1%} less (decoding: {last['decode_cost']})"
    )


def _next_runs(rows: Rows) -> str:
    first, last = rows[0], rows[-1]
    runs = ", ".join(f"N {row['N']:.3g} on D {row['D']:.3g}" for row in rows)
    flops = sum(row["train_flops"] for row in rows)
    return (
        f"{runs} ({flops:.3g} FLOPs together) would take the standard error of ln N* at"
        f" {first['target']:.3g} FLOPs from {first['error_of_ln_N_before']:.3f} to"
        f" {last['error_of_ln_N_after']:.3f}"
    )


def _next_budgets(rows: Rows) -> str:
    parts = (
        f"{row['train_flops']:.3g} FLOPs on N {row['center_N']:.3g} (the law says {row['N_by_the_law']:.3g})"
        for row in rows
    )
    return f"centre {', '.join(parts)}"


_SENTENCES = {
    "parabola_bias": _bias,
    "approach_1": _approach_1,
    "profile": _profile,
    "hold_out": _hold_out,
    "model_selection": _selection,
    "sensitivity": _sensitivity,
    "serving": _serving,
    "next_runs": _next_runs,
    "next_budgets": _next_budgets,
}


def _share(value: float) -> str:
    return f"{value:.3%}" if np.isfinite(value) else "not held out"
