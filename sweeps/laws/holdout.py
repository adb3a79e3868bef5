"""Train below a cut, predict above it: the error that matters, beside its bias and beside a trivial guess."""

from dataclasses import dataclass

import numpy as np

from sweeps.laws.engine import Fitted, minimum
from sweeps.laws.forms import Array, Law
from sweeps.laws.inputs import Points
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import FitError


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Prediction of the runs at or above a cut by a law fitted below it. Errors are shares of the loss."""

    law: str
    estimator: str
    cut: float
    """FLOPs."""
    n_train: int
    n_test: int
    error: float
    """Mean of |predicted / observed - 1|."""
    bias: float
    """Mean of predicted / observed - 1: above 0 the law is too pessimistic."""
    baseline_error: float
    """Error of the trivial guess: every test run repeats the lowest loss seen in training."""
    outside_N: float
    """Largest distance of a test run outside the training range, in ln N; 0 where it is inside."""
    outside_D: float
    predicted: Array
    observed: Array


def hold_out(points: Points, law: Law, settings: LawSettings, *, cut: float, by: str = "C") -> HoldOut:
    """Fit `law` to the runs with `by` (C or budget) below `cut`, predict the others.

    Raises `FitError` where either side is empty or the lower side is too small to fit.
    """
    spent = getattr(points, by)
    train, test = points.take(spent < cut), points.take(spent >= cut)
    if len(test) == 0 or len(train) < len(law.params):
        raise FitError(
            f"a cut at {cut:.6g} FLOPs leaves {len(train)} runs to fit {len(law.params)} parameters "
            f"and {len(test)} to predict"
        )
    fitted = fit_points(train, law, settings)
    predicted = law.predict(fitted.params, **columns_of(test))
    ratio = predicted / test.loss - 1.0
    return HoldOut(
        law=law.name,
        estimator=str(fitted.how),
        cut=float(cut),
        n_train=len(train),
        n_test=len(test),
        error=float(np.average(np.abs(ratio), weights=test.weights)),
        bias=float(np.average(ratio, weights=test.weights)),
        baseline_error=float(np.average(np.abs(train.loss.min() / test.loss - 1.0), weights=test.weights)),
        outside_N=_outside(train.N, test.N),
        outside_D=_outside(train.D, test.D),
        predicted=predicted,
        observed=test.loss,
    )


def hold_out_top(points: Points, law: Law, settings: LawSettings) -> HoldOut:
    """Hold out the largest budget."""
    if len(points.budgets) < 2:
        raise FitError("a hold-out of the top budget needs at least 2 budgets")
    return hold_out(points, law, settings, cut=float(points.budgets[-1]), by="budget")


def fit_points(points: Points, law: Law, settings: LawSettings) -> Fitted:
    """The minimum alone, no intervals, no checks of identifiability."""
    name, delta = settings.estimator, settings.huber_delta
    return minimum(law, columns_of(points), points.loss, points.weights, name=name, delta=delta)


def columns_of(points: Points) -> dict[str, Array]:
    """The inputs a law of training runs may read."""
    return {"N": points.N, "D": points.D, "C": points.C}


def _outside(train: Array, test: Array) -> float:
    low, high = np.log(train.min()), np.log(train.max())
    x = np.log(test)
    return float(np.max(np.maximum(np.maximum(low - x, x - high), 0.0)))
