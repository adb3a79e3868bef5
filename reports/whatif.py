"""What the page needs to answer for any budget itself: the laws with their draws, and what FLOPs cost.

The page holds one function for all laws, L = E + (A N^-alpha + B D^-beta)^gamma, and every law of
`sweeps.laws` of N and D is a case of it. Parameters travel as 32-bit floats, ln A and ln B for A and B: their
relative error of 6e-8 moves N*, D* and L* by less than 1e-5.
"""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from reports.palette import arch_label
from reports.view import View, finished
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.inputs import prepare
from sweeps.laws.predictions import grid_budgets, law_and_params
from sweeps.laws.types import FitError, GroupAnalysis, LawFit
from sweeps.serving import decode_terms

ACCELERATORS: Mapping[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 SXM": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA RTX 4090": 165e12,
    "AMD MI300X": 1307e12,
}
"""Peak FLOP/s in bfloat16 with dense matrices, from the makers' data sheets."""

COLUMNS = ("lnA", "alpha", "lnB", "beta", "E", "gamma")


def what_if(view: View) -> dict[str, Any] | None:
    """The panel's data; None without a fitted law of N and D."""
    groups = [_group(view, group) for group in view.groups if group.parametric]
    if not groups or not view.headline_budgets:
        return None
    return {
        "unit": view.loss_unit,
        "bytesPerToken": view.provenance.bytes_per_token,
        "budget": view.headline_budgets[0],
        "level": view.level,
        "groups": groups,
        "decode": {arch: terms for arch in view.archs if (terms := _decode(view, arch))},
        "measured": _measured(view),
        "accelerators": ACCELERATORS,
    }


def _group(view: View, group: GroupAnalysis) -> dict[str, Any]:
    fit = group.parametric[0]
    law, params = law_and_params(fit)
    points = prepare(_runs_of(view, group), drop_invalid=True)
    grid = grid_budgets(points)
    doubts = [flag.message for flag in fit.flags if flag.severity == "error"]
    return {
        "arch": group.arch,
        "label": arch_label(group.arch),
        "color": view.archs.index(group.arch),
        "context": group.context_length,
        "law": law.formula,
        "doubt": doubts[0] if doubts else None,
        "largestBudget": float(grid.max() if len(grid) else points.C.max()),
        "sizes": [float(points.N.min()), float(points.N.max())],
        "tokenCost": token_cost(lambda N: flops_of_runs(points)(N, np.ones_like(N)), points.N),
        "point": _listed(standard_form(fit.law, params[None])[0]),
        "draws": _draws(fit),
    }


def _runs_of(view: View, group: GroupAnalysis) -> pl.DataFrame:
    place = view.groups.index(group)
    return view.runs.filter(finished() & (pl.col("g") == place))


def standard_form(law: str, params: np.ndarray) -> np.ndarray:
    """Public parameters (rows, p) of a law as (rows, 6) in the order of `COLUMNS`.

    Raises `FitError` for a law that is not of the form L = E + (A N^-alpha + B D^-beta)^gamma.
    """
    columns = params.T
    one, zero = np.ones(len(params)), np.zeros(len(params))
    with np.errstate(divide="ignore"):
        if law == "chinchilla":
            A, B, E, alpha, beta = columns
            parts = (np.log(A), alpha, np.log(B), beta, E, one)
        elif law == "tied":
            A, B, E, alpha = columns
            parts = (np.log(A), alpha, np.log(B), alpha, E, one)
        elif law == "no-E":
            A, B, alpha, beta = columns
            parts = (np.log(A), alpha, np.log(B), beta, zero, one)
        elif law == "gamma":
            A, B, E, alpha, beta, gamma = columns
            parts = (np.log(A), alpha, np.log(B), beta, E, gamma)
        elif law == "kaplan":
            A, B, E, k, gamma = columns
            parts = (np.log(A), k, np.log(B), one, E, gamma)
        elif law == "over-training":
            first, second, E, b = columns
            parts = (np.log(first), -b, np.log(second) + b / 2 * np.log(6.0), -b, E, one)
        else:
            raise FitError(f"law '{law}' is no sum of a power of N and a power of D")
    return np.stack(parts, axis=1)


def token_cost(per_token: Any, N: np.ndarray) -> dict[str, Any]:
    """Training FLOPs a token as the parabola in ln N that `sweeps.laws.flop_curves` draws through the runs,
    with the slopes that continue it below and above."""
    log_N = np.log(N)
    center, low, high = float(log_N.mean()), float(log_N.min()), float(log_N.max())
    at = np.linspace(low, high, 3) if high > low else np.full(1, low)
    y = np.log(per_token(np.exp(at)))
    parabola = np.polynomial.polynomial.polyfit(at - center, y, len(at) - 1)
    ends = np.log(per_token(np.exp(np.array([low - 1.0, low, high, high + 1.0]))))
    return {
        "center": center,
        "coefficients": _listed(np.pad(parabola, (0, 3 - len(parabola)))),
        "low": low - center,
        "high": high - center,
        "slopes": [float(ends[1] - ends[0]), float(ends[3] - ends[2])],
    }


def _draws(fit: LawFit) -> dict[str, Any] | None:
    """The draws a column each: little-endian float32 as base64, or a number where all are equal."""
    if fit.draws is None or not len(fit.draws):
        return None
    rows = standard_form(fit.law, fit.draws).astype("<f4")
    return {"count": len(rows), "columns": [_column(column) for column in rows.T]}


def _column(column: np.ndarray) -> float | str:
    same = np.isfinite(column[0]) and bool((column == column[0]).all())
    return float(column[0]) if same else b64encode(column.tobytes()).decode("ascii")


def _decode(view: View, arch: str) -> dict[str, Any] | None:
    """FLOPs of a decode step by size, where the models' shapes are known."""
    configs = [config for config in view.models if config.arch == arch]
    if not configs:
        return None
    terms = decode_terms(configs)
    return {"N": _listed(terms.N), "fixed": _listed(terms.fixed), "perSeen": _listed(terms.per_seen)}


def _measured(view: View) -> dict[str, Any] | None:
    """What the device of most runs really delivered: the median of their FLOP/s."""
    timed = view.runs.filter(finished() & (pl.col("wall_time_s") > 0) & pl.col("device").is_not_null())
    if not timed.height:
        return None
    device = timed["device"].value_counts(sort=True).sort(["count", "device"], descending=[True, False])
    name = device["device"][0]
    rates = timed.filter(pl.col("device") == name).select(pl.col("train_flops") / pl.col("wall_time_s"))
    return {"device": name, "flopsPerSecond": float(np.median(rates.to_series().to_numpy()))}


def _listed(values: np.ndarray) -> list[float | None]:
    """Plain floats; JSON has no infinity and no nan, so these become null."""
    return [float(value) if np.isfinite(value) else None for value in values]
