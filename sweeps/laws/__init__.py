"""Scaling laws: forms, estimators, uncertainty, diagnostics. Needs numpy, scipy and polars alone."""

from sweeps.laws.analysis import analyse
from sweeps.laws.bootstrap import Bootstrap, Scheme, by_budget, run_bootstrap
from sweeps.laws.engine import ESTIMATORS, Fitted, minimum
from sweeps.laws.fitting import clusters_of, find_law, fit, fit_arrays, with_interval
from sweeps.laws.forms import LAWS, Law, PowerSum, Term
from sweeps.laws.holdout import HoldOut, fit_points, hold_out, hold_out_top
from sweeps.laws.inputs import FlopFunction, Points, points_from_arrays, prepare, six_nd
from sweeps.laws.profile import Profile, profile_likelihood
from sweeps.laws.selection import LawScore, compare_laws
from sweeps.laws.serialise import from_json, to_json
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import Analysis, Estimate, FitError, Flag, LawFit

__all__ = [
    "ESTIMATORS",
    "LAWS",
    "Analysis",
    "Bootstrap",
    "Estimate",
    "FitError",
    "Fitted",
    "Flag",
    "FlopFunction",
    "HoldOut",
    "Law",
    "LawFit",
    "LawScore",
    "LawSettings",
    "Points",
    "PowerSum",
    "Profile",
    "Scheme",
    "Term",
    "analyse",
    "by_budget",
    "clusters_of",
    "compare_laws",
    "find_law",
    "fit",
    "fit_arrays",
    "fit_points",
    "from_json",
    "hold_out",
    "hold_out_top",
    "minimum",
    "points_from_arrays",
    "prepare",
    "profile_likelihood",
    "run_bootstrap",
    "six_nd",
    "to_json",
    "with_interval",
]
