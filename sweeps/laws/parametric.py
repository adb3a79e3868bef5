"""The parametric laws of one group: the one that answers, and another estimator of it that stands beside."""

from dataclasses import replace

from sweeps.laws.fitting import fit
from sweeps.laws.inputs import Points
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import LawFit


def fit_parametric(points: Points, settings: LawSettings) -> tuple[LawFit, ...]:
    """The law by the estimator of the settings, and by least squares: in loss, or in ln L where that answers.

    Huber's objective in ln L and least squares in L weigh the runs differently, so that their difference
    shows how much the answer owes to the estimator. Raises `FitError` as `fit` does.
    """
    beside = "ls-log" if settings.estimator in ("ls", "vp") else "vp"
    return tuple(fit(points, replace(settings, estimator=name)) for name in (settings.estimator, beside))
