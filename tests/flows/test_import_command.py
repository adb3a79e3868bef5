"""`isoflop import` as its user types it."""

from pathlib import Path
from shutil import copyfile

import polars as pl
import pytest

from tasks.state import open_state
from tests.flows.test_cli import Isoflop, home, isoflop
from tests.sweeps.published.authors import llama, save

__all__ = ["home", "isoflop"]  # fixtures


@pytest.fixture
def tracked_home(home: Path, mlflow_template: Path) -> Path:
    copyfile(mlflow_template, open_state(home).tracking_db)
    return home


def test_published_runs(isoflop: Isoflop, tracked_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "authors"
    save(
        folder / "isoflop_llama_ctx2048_wandb_data.pkl",
        {"sclaw_llama_iso7": [llama(), llama(run_id="dead", loss=None)]},
    )
    save(folder / "fits.pkl", [1, 2, 3])
    code, out, err = isoflop("import", "xlstm-scaling-laws", folder)
    assert (code, err) == (0, "")
    assert "skipped: fits.pkl: holds neither published runs, nor curves, nor measurements" in out
    assert "2 runs, 1 of them finished, 1 with curves: 2 new, 0 written again, 0 as they were" in out
    assert f"MLflow experiment xlstm-scaling-laws; tables in {tracked_home}/sweeps/paper/published" in out
    assert "reading isoflop_llama_ctx2048_wandb_data.pkl" in out
    code, out, _ = isoflop("import", "xlstm-scaling-laws", folder)
    assert code == 0
    assert "0 new, 0 written again, 2 as they were" in out


def test_an_evil_pickle_is_one_line(isoflop: Isoflop, tracked_home: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'touch OWNED'\ntR.")
    code, _, err = isoflop("import", "xlstm-scaling-laws", tmp_path / "evil.pkl")
    assert code == 2
    assert err.count("\n") == 1
    assert "evil.pkl: wants 'system' of module 'posix', which published runs do not need; refused" in err
    assert not (tmp_path / "OWNED").exists()


def test_a_table_of_runs_can_be_fitted_from_mlflow(
    isoflop: Isoflop, tracked_home: Path, tmp_path: Path
) -> None:
    rows = []
    for C in (1e18, 3e18, 1e19, 3e19):
        for N in (50e6, 100e6, 200e6, 400e6, 800e6):
            D = C / (6 * N)
            rows.append({"millions": N / 1e6, "D": D, "C": C, "loss": 1.7 + 400 / N**0.34 + 410 / D**0.28})
    pl.DataFrame(rows).write_csv(tmp_path / "mine.csv")
    columns = ["--column", "N=millions", "--unit", "N=M", "--column", "budget=C"]
    code, out, err = isoflop(
        "import", "runs", tmp_path / "mine.csv", *columns, "--arch", "mlstm", "--name", "theirs"
    )
    assert (code, err) == (0, "")
    assert "20 runs, 20 of them finished, 0 with curves: 20 new" in out
    code, out, err = isoflop("fit", "mlflow:theirs", "--resamples", 0, "--out", tmp_path / "laws")
    assert (code, err) == (0, "")
    assert (tmp_path / "laws" / "analysis.json").exists()
    code, _, err = isoflop("import", "runs", tmp_path / "mine.csv")
    assert code == 2
    assert "column N is missing" in err
