"""Imports into MLflow: whole, once, with curves and provenance, and repeatable after a cut."""

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sweeps.gather import gather_experiment
from sweeps.laws.types import FitError
from sweeps.published import PUBLISHED_SCHEMA
from tasks import import_tracking, importing, tracking
from tasks.errors import UserError
from tasks.importing import STUDY, import_runs, import_study, load_study
from tasks.state import State
from tests.sweeps.published.authors import llama, mlstm, save

LLAMA = "isoflop_llama_ctx2048_wandb_data.pkl"


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A folder of two of their files."""
    folder = tmp_path / "authors"
    name = "dclm_llama_80M_ctx2048_lr0.003_steps20000_nb14_ed512_hd64_gbs512"
    runs = [
        llama(run_id="one", steps=14_000),
        llama(name, run_id="two", steps=20_000, blocks=14, loss=3.2),
        llama(name, run_id="dead", steps=20_000, blocks=14, loss=None),
    ]
    save(folder / LLAMA, {"sclaw_llama_iso7": runs})
    save(folder / "tokenparam_mlstm_wandb_data.pkl", {"scl_mlstm_160Mv2": [mlstm()]})
    return folder


def tracked_runs(state: State, experiment: str = STUDY) -> dict[str, Any]:
    client = tracking.client(state.tracking_uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.data.tags["isoflop.run_key"]: run for run in client.search_runs([found.experiment_id])}


def digests(state: State) -> dict[str, str]:
    folder = state.sweep_dir("paper") / "published"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_every_run_its_curves_and_where_they_come_from(authors: Path, tracked: State) -> None:
    imported = import_study(authors, tracked)
    assert (imported.written.new, imported.written.replaced, imported.written.unchanged) == (4, 0, 0)
    runs = tracked_runs(tracked)
    table = load_study(tracked).runs
    assert table.schema == PUBLISHED_SCHEMA
    assert set(runs) == set(table["run_key"])
    client = tracking.client(tracked.tracking_uri)
    for row in table.to_dicts():
        run = runs[row["run_key"]]
        assert run.info.run_id == row["mlflow_run_id"]
        assert run.info.status == ("FAILED" if row["published_id"] == "dead" else "FINISHED")
        assert run.data.tags["isoflop.source_sha256"] == row["source_sha256"]
        assert run.data.tags["isoflop.importer"] == str(import_tracking.IMPORTER_VERSION)
        assert run.data.params["N"] == repr(row["N"])
        assert run.data.params["flop_convention"] == row["flop_convention"]
        if row["status"] == "finished":
            assert run.data.metrics["loss"] == row["loss"]
            assert run.data.tags["isoflop.loss"] == "exact"
    one = table.filter(pl.col("published_id") == "one").to_dicts()[0]
    history = client.get_metric_history(one["mlflow_run_id"], "train_loss")
    assert len(history) == import_tracking.CURVE_POINTS
    assert (history[0].step, history[-1].step, history[-1].value) == (50, 14_000, 3.25)
    validation = client.get_metric_history(one["mlflow_run_id"], "loss")
    assert [(point.step, point.value) for point in validation] == [(7_000, 3.75), (14_000, 3.25)]
    dead = runs[table.filter(pl.col("published_id") == "dead")["run_key"][0]]
    assert dead.data.tags["isoflop.error"] == "the authors' tracker has no log of it"


def test_importing_twice_changes_nothing(authors: Path, tracked: State) -> None:
    import_study(authors, tracked)
    before, ids = digests(tracked), {key: run.info.run_id for key, run in tracked_runs(tracked).items()}
    again = import_study(authors, tracked)
    assert (again.written.new, again.written.replaced, again.written.unchanged) == (0, 0, 4)
    assert digests(tracked) == before
    assert {key: run.info.run_id for key, run in tracked_runs(tracked).items()} == ids


def test_an_import_that_was_cut_off_is_completed(
    authors: Path, tracked: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = import_tracking._write

    def interrupted(client: Any, experiment_id: str, entry: Any) -> str:
        if len(written) == 2:
            client.create_run(experiment_id, tags=entry.tags, run_name=entry.name)  # begun, and no more
            raise KeyboardInterrupt
        written.append(entry.name)
        return write(client, experiment_id, entry)

    monkeypatch.setattr(import_tracking, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_study(authors, tracked)
    monkeypatch.undo()
    assert not (tracked.sweep_dir("paper") / "published" / "runs.parquet").exists()
    again = import_study(authors, tracked)
    assert (again.written.new, again.written.replaced, again.written.unchanged) == (1, 1, 2)
    assert len(tracked_runs(tracked)) == 4
    assert {run.info.status for run in tracked_runs(tracked).values()} == {"FINISHED", "FAILED"}


def test_one_file_after_the_other_is_both(authors: Path, tracked: State) -> None:
    import_study(authors / LLAMA, tracked)
    both = import_study(authors / "tokenparam_mlstm_wandb_data.pkl", tracked)
    assert both.study.runs.height == 4
    assert both.study.curves["run_key"].n_unique() == 3
    assert (both.written.new, both.written.unchanged) == (1, 3)
    assert import_study(authors, tracked).written.unchanged == 4


def test_a_run_with_an_id_takes_the_place_of_its_reconstruction(tmp_path: Path, tracked: State) -> None:
    row = {
        "run_set": "isoflop_mlstm_ctx2048", "run_name": "(reconstructed) one", "model_type": "mlstm_v1",
        "context_length": 2048, "embedding_dim": 768, "num_blocks": 12, "num_heads": 6, "head_dim_qk": 64,
        "ffn_proj_factor": 2.667, "vocab_size": 50304, "global_batch_size": 512, "peak_lr": 0.003,
        "num_train_steps": 3500, "final_val_loss_dclm": 3.3, "final_val_loss_exact": False,
        "final_val_loss_lo": 3.29, "final_val_loss_hi": 3.31,
    }  # fmt: skip
    pl.DataFrame([row]).write_csv(tmp_path / "recovered.csv")
    first = import_study(tmp_path / "recovered.csv", tracked)
    (run,) = tracked_runs(tracked).values()
    assert run.data.tags["isoflop.loss"] == "bounded: 3.29 to 3.31"
    assert first.study.runs["loss_exact"].to_list() == [False]
    real = mlstm("dclm_mLSTMv1_160M_ctx2048", context=2048, batch=512, loss=3.302)
    import_study(save(tmp_path / "isoflop_mlstm_ctx2048_wandb_data.pkl", {"tag": [real]}), tracked)
    (run,) = tracked_runs(tracked).values()
    assert run.data.metrics["loss"] == 3.302
    table = import_study(tmp_path / "recovered.csv", tracked).study.runs
    assert table["published_id"].to_list() == ["xyz"]


def test_a_table_alone_does_not_take_a_curve_away(authors: Path, tmp_path: Path, tracked: State) -> None:
    import_study(authors, tracked)
    kept = load_study(tracked)
    table = kept.runs.filter(pl.col("published_id") == "one")
    row = {
        "run_set": table["run_set"][0], "run_id": "one", "run_name": table["run_name"][0],
        "model_type": "llama", "context_length": 2048, "embedding_dim": 512, "num_blocks": 10,
        "num_heads": 8, "ffn_proj_factor": 2.667, "vocab_size": 50304, "global_batch_size": 512,
        "peak_lr": 0.003, "num_train_steps": 14_000, "final_val_loss_dclm": 3.25,
    }  # fmt: skip
    pl.DataFrame([row]).write_csv(tmp_path / "tidy.csv")
    after = import_study(tmp_path / "tidy.csv", tracked)
    assert after.study.curves.height == kept.curves.height
    assert after.written.unchanged == 4


def test_what_cannot_be_imported_is_named(tmp_path: Path, tracked: State) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"evil\.pkl: wants 'system' of module 'posix'"):
        import_study(tmp_path / "evil.pkl", tracked)
    with pytest.raises(UserError, match="no such file or folder"):
        import_study(tmp_path / "absent", tracked)
    with pytest.raises(UserError, match="nothing is imported: run `isoflop import xlstm-scaling-laws PATH`"):
        load_study(tracked)


def test_progress_is_told(authors: Path, tracked: State) -> None:
    told: list[tuple[str, int, int]] = []
    import_study(authors, tracked, lambda *event: told.append(event))
    assert (f"reading {LLAMA}", 0, 0) in told
    assert ("writing to MLflow", 4, 4) in told


def test_runs_of_any_table(tmp_path: Path, tracked: State) -> None:
    table = pl.DataFrame(
        {
            "params": [10.0, 20.0, 40.0],
            "D": [1e9, 5e8, 2e8],
            "loss": [3.0, 2.9, 3.1],
            "run_name": ["a", "b", None],
        }
    )
    table.write_csv(tmp_path / "mine.csv")
    said: dict[str, Any] = {"columns": {"N": "params"}, "units": {"N": "M"}, "arch": "mlstm"}
    imported = import_runs(tmp_path / "mine.csv", tracked, **said, context_length=512)
    assert imported.experiment == "mine"
    gathered = gather_experiment("mine", tracked.tracking_uri)
    assert sorted(gathered["N"]) == [1e7, 2e7, 4e7]
    assert sorted(gathered["run_name"]) == ["a", "b", "mine-3"]
    assert set(gathered["arch"]) == {"mlstm"}
    assert gathered["budget"].null_count() == 3
    again = import_runs(tmp_path / "mine.csv", tracked, **said, context_length=512)
    assert again.written.unchanged == 3
    table.head(2).write_csv(tmp_path / "mine.csv")
    import_runs(tmp_path / "mine.csv", tracked, **said, context_length=512)
    assert len(tracked_runs(tracked, "mine")) == 2


def test_a_table_of_runs_is_checked(tmp_path: Path, tracked: State) -> None:
    pl.DataFrame({"N": [10.0], "D": [1e9], "loss": [3.0]}).write_csv(tmp_path / "mine.csv")
    with pytest.raises(FitError, match="say its unit, as --unit N=M"):
        import_runs(tmp_path / "mine.csv", tracked)
    with pytest.raises(UserError, match="--name paper: belongs to"):
        import_runs(tmp_path / "mine.csv", tracked, units={"N": "M"}, name="paper")
    keys = pl.DataFrame({"N": [1e7, 2e7], "D": [1e9, 1e9], "loss": [3.0, 2.9], "run_key": ["k", "k"]})
    keys.write_csv(tmp_path / "keys.csv")
    with pytest.raises(UserError, match="run_key k stands there twice"):
        import_runs(tmp_path / "keys.csv", tracked)


def test_two_imports_at_once_are_refused(authors: Path, tracked: State) -> None:
    with importing.FileLock(tracked.lock("import-paper")), pytest.raises(UserError, match="another import"):
        import_study(authors, tracked)
