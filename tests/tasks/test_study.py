"""The tasks of the imported study: when it is one, and fits that are kept while nothing changes."""

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from sweeps.study.parametric import cells
from tasks import study
from tests.sweeps.study.paper import read_paper

FEW = cells(
    archs=("transformer",), sets=("tokenparam",), ratios=(5000.0,), gammas=(False,), deltas=(1.0, 0.1)
)


def sweep(folder: Path, name: str = "paper", table: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(folder=folder, name=name, table=table)


def test_asked_for_by_name_and_not_trained_here(tmp_path: Path):
    assert study.is_study(sweep(tmp_path))
    assert not study.is_study(sweep(tmp_path, name="quick"))
    assert not study.is_study(sweep(tmp_path, table="runs.csv"))
    (tmp_path / "plan.parquet").touch()
    assert not study.is_study(sweep(tmp_path))
    (tmp_path / "published").mkdir()
    (tmp_path / "published/runs.parquet").touch()
    assert study.is_study(sweep(tmp_path))


def test_fits_are_kept_while_runs_and_code_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs, path = read_paper().runs, tmp_path / "fits.json"
    monkeypatch.setattr(study, "fittable", lambda table: FEW)
    first = study.kept_fits(runs, path)
    with monkeypatch.context() as patch:
        patch.setattr(study, "fit_cells", lambda *args, **kwargs: pytest.fail("fitted again"))
        assert study.kept_fits(runs, path) == first
    changed = study.kept_fits(runs.with_columns(loss=pl.col("loss") * 1.001), path)
    assert changed[FEW[0]].objective != first[FEW[0]].objective
