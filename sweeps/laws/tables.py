"""The diagnostics tables of a group: rows of plain values that a report or a terminal prints as they are."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import polars as pl

from sweeps.laws.approach1 import fit_approach1
from sweeps.laws.bias import predicted_bias
from sweeps.laws.checklist import UNKNOWN, checklist
from sweeps.laws.fitting import find_law
from sweeps.laws.flop_curves import curve_error
from sweeps.laws.holdout import fit_points, hold_out_top
from sweeps.laws.inference_cost import ServingCost
from sweeps.laws.inputs import FlopFunction, Points, prepare
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.outlook import Rows, next_budgets, next_runs, serving
from sweeps.laws.predictions import grid_budgets, identified, law_and_params
from sweeps.laws.profile import profile_likelihood
from sweeps.laws.selection import compare_laws
from sweeps.laws.sensitivity import OBJECTIVES, sensitivity
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import FitError, LawFit


def diagnostic_tables(
    table: pl.DataFrame,
    points: Points,
    isoflop: IsoflopFit | None,
    fits: Sequence[LawFit],
    settings: LawSettings,
    flops: FlopFunction,
    flops_given: bool,
    serving_cost: ServingCost | None = None,
) -> dict[str, object]:
    """Tables by name; one that the data cannot support is a single row with the reason.

    `profile` and `serving` are there where the settings ask for them.
    """
    source = (
        "given FLOP function" if flops_given else "FLOPs of the runs, by a curve of FLOPs a token in ln N"
    )
    held = _hold_out(points, settings)
    answers = checklist(
        table, points, isoflop, fits, settings, flops=source, hold_out=_hold_out_summary(held)
    )
    tables: dict[str, object] = {
        "hold_out": held,
        "model_selection": _or_reason(lambda: [asdict(score) for score in compare_laws(points, settings)]),
        "sensitivity": _or_reason(lambda: _sensitivity(table, points, settings)),
        "parabola_bias": _or_reason(lambda: _bias(points, isoflop, fits, settings, flops)),
        "approach_1": _or_reason(lambda: _approach_1(points, settings)),
        "next_runs": _or_reason(lambda: next_runs(points, fits, settings, flops)),
        "next_budgets": _or_reason(lambda: next_budgets(points, isoflop, fits, flops)),
        "flops": [{"source": source, "largest_relative_error": curve_error(points, flops)}],
        "checklist": [asdict(answer) for answer in answers],
    }
    if settings.profile:
        tables["profile"] = _or_reason(lambda: _profile(points, settings))
    if settings.served_tokens:
        tables["serving"] = _or_reason(lambda: serving(points, fits, settings, flops, serving_cost))
    return tables


def _or_reason(make: Callable[[], Rows]) -> Rows:
    try:
        return make()
    except FitError as error:
        return [{"note": str(error)}]


def _hold_out(points: Points, settings: LawSettings) -> Rows:
    """The top budget predicted by the law fitted below it, under every estimator."""

    def rows() -> Rows:
        law = find_law(settings.law)
        names = (settings.estimator, *(name for name in OBJECTIVES if name != settings.estimator))
        found = (hold_out_top(points, law, replace(settings, estimator=name)) for name in names)
        return [
            {key: value for key, value in asdict(held).items() if key not in ("predicted", "observed")}
            for held in found
        ]

    return _or_reason(rows)


def _hold_out_summary(held: Rows) -> str:
    first = held[0]
    if "error" not in first:
        return str(first.get("note", UNKNOWN))
    return (
        f"runs from {first['cut']:.3g} FLOPs on predicted with a mean error of {first['error']:.2%}"
        f" (bias {first['bias']:+.2%}; trivial guess {first['baseline_error']:.2%})"
    )


def _sensitivity(table: pl.DataFrame, points: Points, settings: LawSettings) -> Rows:
    sizes = {"total": points}
    if "N_non_embedding" in table.columns and table["N_non_embedding"].null_count() == 0:
        sizes["non-embedding"] = prepare(table, size="N_non_embedding", drop_invalid=True)
    target = max([float(points.C.max()), *settings.target_budgets])
    rows = []
    for variant in sensitivity(sizes, settings, target):
        row = asdict(variant)
        rows.append({key: row[key] for key in row if key != "params"} | row["params"])
    return rows


def _bias(
    points: Points,
    isoflop: IsoflopFit | None,
    fits: Sequence[LawFit],
    settings: LawSettings,
    flops: FlopFunction,
) -> Rows:
    surface = next((fit for fit in fits if identified(fit)), None)
    if isoflop is None or surface is None:
        raise FitError("the bias of the parabolas needs parabolas and an identified law")
    law, params = law_and_params(surface)
    targets = [float(grid_budgets(points).max()), *settings.target_budgets]
    usable = np.array([parabola.budget for parabola in isoflop.usable])
    rows = []
    for target in dict.fromkeys(targets):
        bias = predicted_bias(law, params, points, flops=flops, target=target, budgets=usable)
        rows.append(
            {
                "target": target,
                "error_of_a": bias.exponent_N,
                "error_of_b": bias.exponent_D,
                "relative_error_of_N": bias.relative_N,
                "relative_error_of_D": bias.relative_D,
            }
        )
    return rows


def _profile(points: Points, settings: LawSettings) -> Rows:
    fitted = fit_points(points, find_law(settings.law), settings)
    found = [profile_likelihood(fitted, name, level=settings.level) for name in settings.profile]
    return [
        {
            "quantity": profile.quantity,
            "value": profile.interval.value,
            "low": profile.interval.low,
            "high": profile.interval.high,
            "note": "; ".join(flag.message for flag in profile.flags),
        }
        for profile in found
    ]


def _approach_1(points: Points, settings: LawSettings) -> Rows:
    found = fit_approach1(
        points, resamples=settings.resamples, level=settings.level, seed=settings.seed, bins_per_decade=4
    )
    return [
        {
            "quantity": name,
            "exponent": law.exponent.value,
            "low": law.exponent.low,
            "high": law.exponent.high,
            "points_on_the_frontier": len(found.rows),
        }
        for name, law in found.power_laws.items()
    ]
