"""The study's runs and curves as the view that the report's own figures and tables read."""

import polars as pl

from reports.provenance import Provenance
from reports.view import View, make_view
from sweeps.laws.types import Analysis, GroupAnalysis
from sweeps.study import Study
from sweeps.study.data import ISOFLOP
from sweeps.study.isoflop import Curves


def study_view(study: Study, provenance: Provenance) -> View:
    """IsoFLOP runs with our parabolas and power laws; what the study has beyond them stands in its
    figures."""
    analysis = Analysis(
        groups=tuple(_group(curves) for curves in study.curves),
        comparisons=(),
        settings={"level": study.settings.level, "resamples": study.settings.resamples},
        context_laws=study.context_laws,
    )
    return make_view(study.runs.filter(pl.col("experiment_set") == ISOFLOP), analysis, provenance)


def _group(curves: Curves) -> GroupAnalysis:
    return GroupAnalysis(
        arch=curves.arch,
        context_length=curves.context_length,
        n_runs=len(curves.points),
        parabolas=curves.ours.parabolas,
        power_laws=curves.ours.power_laws,
        parametric=(),
        optima=(),
        flags=curves.ours.flags,
    )
