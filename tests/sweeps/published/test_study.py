"""Published runs: from pickles and from tidy tables, the same; nothing lost, nothing counted twice."""

import math
import shutil
from pathlib import Path

import polars as pl
import pytest

from sweeps.published import (
    CURVES_SCHEMA,
    INFERENCE_SCHEMA,
    PUBLISHED_SCHEMA,
    PickleRefused,
    PublishedError,
    PublishedStudy,
    read_published,
)
from tests.sweeps.published.authors import llama, mlstm, save
from xlstm.accounting import mlstm_config, training_flops

PAPER = Path(__file__).parents[4] / "shared" / "data" / "paper"
published = pytest.mark.skipif(not PAPER.exists(), reason="the paper's data is not beside this checkout")

LLAMA = "isoflop_llama_ctx2048_wandb_data.pkl"
MLSTM = "isoflop_mlstm_ctx8192_wandb_data.pkl"


@pytest.fixture(scope="module")
def paper() -> PublishedStudy:
    return read_published(PAPER)


def kinds(study: PublishedStudy) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for note in study.notes:
        found.setdefault(note.kind, []).append(note.text)
    return found


def test_a_run_out_of_a_pickle(tmp_path: Path) -> None:
    study = read_published(save(tmp_path / LLAMA, {"sclaw_llama_iso7": [llama()]}))
    (run,) = study.runs.to_dicts()
    assert study.runs.schema == PUBLISHED_SCHEMA
    assert study.curves.schema == CURVES_SCHEMA
    assert run["arch"] == "transformer"
    assert (run["N"], run["ffn_dim"], run["num_heads"]) == (83_634_688.0, 1408, 8)
    assert (run["context_length"], run["batch_size"], run["steps"], run["D"]) == (
        2048,
        512,
        2000,
        2000 * 2**20,
    )
    assert (run["peak_lr"], run["warmup_steps"], run["cooldown_steps"]) == (0.003, 750, 1000)
    assert (run["loss"], run["train_loss"], run["loss_slimpajama"]) == (3.25, 3.25, 3.5)
    assert (run["loss_exact"], run["loss_low"], run["loss_high"]) == (True, 3.25, 3.25)
    assert (run["status"], run["copies"], run["source_tags"]) == ("finished", 1, "sclaw_llama_iso7")
    assert run["flop_convention"] == "distill_scaling"
    assert run["device"] == "H100"
    assert run["tokens_per_s"] == 2**20 / 0.5
    text = study.runs.write_json() + study.curves.write_json()
    assert "example.com" not in text
    assert "their-node" not in text


def test_the_curve_of_a_run(tmp_path: Path) -> None:
    curve = read_published(save(tmp_path / LLAMA, {"tag": [llama()]})).curves
    assert curve["step"].to_list() == list(range(50, 2001, 50))
    assert curve["tokens"][0] == 50 * 2**20
    assert curve.filter(pl.col("loss").is_not_null()).select("step", "loss").rows() == [
        (1000, 3.75), (2000, 3.25),
    ]  # fmt: skip
    assert curve["train_loss"][-1] == 3.25
    assert curve["grad_norm_max"][0] is None  # wandb wrote the text NaN
    assert curve["lr"].null_count() == curve.height


def test_an_xlstm_run_out_of_a_pickle(tmp_path: Path) -> None:
    """The keys of the sets that are not given here, as the authors' loader reads them."""
    study = read_published(
        save(tmp_path / "tokenparam_mlstm_wandb_data.pkl", {"scl_mlstm_160Mv2": [mlstm()]})
    )
    (run,) = study.runs.to_dicts()
    config = mlstm_config(d_model=768, num_blocks=12, num_heads=6, vocab_size=50304)
    assert (run["arch"], run["N"], run["ffn_dim"], run["head_dim_qk"]) == ("mlstm", 164_110_224.0, 2112, 64)
    assert run["train_flops"] == training_flops(config, 8192, run["D"])
    assert run["train_flops_tfla"] == training_flops(config, 8192, run["D"], mode="tfla")
    assert (run["flop_convention"], run["train_flops_chinchilla"]) == ("first", None)
    assert (run["experiment_set"], run["preset_token_param_ratio"], run["budget"]) == (
        "tokenparam",
        22.0,
        None,
    )
    assert run["excluded"] is None


@pytest.mark.parametrize("module", ["xlstm_scaling_laws.common.wandb_run_data", "an.older_name"])
def test_the_class_may_live_in_any_module(module: str, tmp_path: Path) -> None:
    study = read_published(save(tmp_path / LLAMA, {"tag": [llama(module=module)]}))
    assert study.runs.height == 1


def test_duplicates_are_one_run_and_are_recorded(tmp_path: Path) -> None:
    """PAPER.md, finding 2: runs downloaded again under another tag; the same losses under another id too."""
    name = "dclm_mLSTMv1_160M_ctx8192_lr0.003_steps3500_nb12_ed768_nh6_pf2.667_gbs128"
    runs = {
        "sclaw_iso": [mlstm(name, run_id="a"), mlstm(f"{name}x", run_id="b", loss=3.1)],
        "nb12_ed768_nh6_pf2.667": [mlstm(name, run_id="a")],
        "again": [mlstm(name, run_id="c")],
    }
    study = read_published(save(tmp_path / MLSTM, runs))
    rows = study.runs.sort("published_id").select("published_id", "copies", "source_tags").rows()
    assert rows == [("a", 3, "sclaw_iso,nb12_ed768_nh6_pf2.667,again"), ("b", 1, "sclaw_iso")]
    assert kinds(study)["duplicates"] == [
        "2 rows repeat one of 1 runs under another tag; source_tags keeps the tags"
    ]


def test_two_trainings_of_one_name_stay_two(tmp_path: Path) -> None:
    runs = [llama(run_id="a", loss=None), llama(run_id="b", loss=3.25), llama(run_id="c", loss=3.26)]
    study = read_published(save(tmp_path / LLAMA, {"tag": runs}))
    assert sorted(study.runs["published_id"]) == ["a", "b", "c"]
    dead = study.runs.filter(pl.col("published_id") == "a").to_dicts()[0]
    assert (dead["status"], dead["error"], dead["loss"]) == (
        "failed",
        "the authors' tracker has no log of it",
        None,
    )
    assert (dead["steps"], dead["batch_size"], dead["N"]) == (2000, 512, 83_634_688.0)


def test_a_run_that_stopped_early_failed(tmp_path: Path) -> None:
    study = read_published(save(tmp_path / LLAMA, {"tag": [llama(steps=9400, logged_steps=5400)]}))
    (run,) = study.runs.to_dicts()
    assert (run["status"], run["error"]) == ("failed", "stopped at step 5400 of 9400")
    assert run["excluded"] == run["error"]


def test_a_resumed_run_of_the_ratio_sets_is_joined(tmp_path: Path) -> None:
    name = "dclm_mLSTMv1_400M_ctx8192_lr0.001_steps4000_gbs128"
    first = mlstm(name, run_id="one", steps=2000, created_at="2024-12-01T00:00:00Z")
    second = mlstm(
        name, run_id="two", steps=4000, created_at="2024-12-02T00:00:00Z", start_step=2000, loss=3.0
    )
    study = read_published(
        save(tmp_path / "tokenparam_mlstm_wandb_data.pkl", {"scl_mlstm_400M": [second, first]})
    )
    (run,) = study.runs.to_dicts()
    assert (run["published_id"], run["loss"], run["wall_time_s"]) == ("one-two", 3.0, 7200.0)
    assert study.curves["step"].to_list() == list(range(50, 4001, 50))


def test_unknown_and_evil_files_in_a_folder_are_named_and_skipped(tmp_path: Path) -> None:
    save(tmp_path / LLAMA, {"tag": [llama()]})
    save(tmp_path / "fits.pkl", {"alpha": [0.5]})
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'touch OWNED'\ntR.")
    (tmp_path / "cut.pkl").write_bytes((tmp_path / LLAMA).read_bytes()[:1000])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    study = read_published(tmp_path)
    assert study.runs.height == 1
    notes = "\n".join(note.text for note in study.notes)
    assert "evil.pkl: wants 'system' of module 'posix', which published runs do not need; refused" in notes
    assert len(kinds(study)["refused"]) == 2
    for name in ("fits.pkl", "cut.pkl", "notes.txt", "other.csv", "broken.parquet"):
        assert name in notes
    assert not Path("OWNED").exists()


def test_one_file_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(PickleRefused, match="'system' of module 'posix'"):
        read_published(tmp_path / "evil.pkl")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PublishedError, match=r"other\.csv: holds no published runs"):
        read_published(tmp_path / "other.csv")
    with pytest.raises(PublishedError, match="no such file or folder"):
        read_published(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishedError, match="is empty"):
        read_published(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run.config.pop("model.model_config.embedding_dim"), "embedding_dim"),
        (lambda run: run.config.update({"model.model_class": "a.Mamba"}), "a model of class a.Mamba"),
        (lambda run: run.logs.update({"val/.dclm_loss": "text"}), "val/.dclm_loss is no table"),
        (lambda run: setattr(run, "name", ["a"] * 9), "a list where a text or a number was due"),
    ],
)
def test_a_run_that_is_not_as_expected_is_named(change: object, reason: str, tmp_path: Path) -> None:
    run = llama()
    change(run)  # type: ignore[operator]
    with pytest.raises(PickleRefused) as error:
        read_published(save(tmp_path / LLAMA, {"the tag": [run]}))
    assert reason in str(error.value)
    assert "'the tag'" in str(error.value) or "log" in reason


@published
def test_the_given_data_is_the_papers_data_set(paper: PublishedStudy) -> None:
    """Counts of PAPER.md, section 1.5, for the sets that are given."""
    counts = dict(paper.paper_runs.group_by("run_set").len().rows())
    assert counts == {
        "isoflop_llama_ctx2048": 84,
        "isoflop_llama_ctx8192": 107,
        "isoflop_mlstm_ctx2048": 87,
        "isoflop_mlstm_ctx8192": 145,
        "tokenparam_llama": 31,
        "tokenparam_mlstm": 35,
    }
    assert paper.runs["run_key"].is_unique().all()
    assert paper.runs.filter(~pl.col("loss_exact")).height == 130
    assert "disagreement" not in kinds(paper)


@published
def test_our_count_of_flops_is_theirs(paper: PublishedStudy) -> None:
    table = pl.read_csv(PAPER / "tidy" / "all_runs_2k_8k.csv", infer_schema_length=None)
    both = paper.paper_runs.join(table, on="run_name", suffix="_theirs")
    assert both.height == 489
    for ours, theirs in (
        ("N", "num_params"),
        ("D", "tokens_trained"),
        ("train_flops", "train_flops_distill"),
        ("train_flops_chinchilla", "train_flops_chinchilla_theirs"),
        ("train_flops_tfla", "train_flops_mlstm_tfla"),
        ("token_param_ratio", "token_param_ratio_theirs"),
        ("loss", "final_val_loss_dclm"),
        ("train_loss", "final_train_loss"),
        ("step_time_s", "step_time_mean_last100_s"),
        ("wall_time_s", "runtime_s"),
    ):
        known = both.filter(pl.col(ours).is_not_null() & pl.col(theirs).is_not_null())
        assert known.height >= 150
        worst = known.select((pl.col(ours) / pl.col(theirs) - 1).abs().max()).item()
        assert worst <= 1e-9, ours
    budgets = both.filter(pl.col("experiment_set") == "isoflop")
    assert (budgets["budget"] == budgets["isoflop_budget_label"]).all()
    assert (both["excluded"].is_null()).all()


@published
def test_pickles_and_tables_give_the_same_runs(paper: PublishedStudy, tmp_path: Path) -> None:
    """Import of either alone: same keys, numbers, verdicts; the ratios too where no table states them."""
    tables = read_published(PAPER / "tidy")
    pickled = read_published(PAPER / "raw")
    same = ["run_key", "N", "D", "train_flops", "loss", "budget", "status", "excluded", "steps", "batch_size"]
    for run_set in ("isoflop_llama_ctx2048", "isoflop_llama_ctx8192"):
        one, other = (s.runs.filter(pl.col("run_set") == run_set).select(same) for s in (tables, pickled))
        assert one.drop("loss").equals(other.drop("loss"))
        assert ((one["loss"] - other["loss"]).abs().drop_nulls() < 1e-9).all()
    assert pickled.runs.height == 201
    for name in ("runs_tokenparam_llama.csv", "runs_tokenparam_mlstm.csv"):
        table = pl.read_csv(PAPER / "tidy" / name, infer_schema_length=None)
        table.drop("preset_token_param_ratio").write_csv(tmp_path / name)
        derived = read_published(tmp_path / name).runs.select("run_name", "preset_token_param_ratio")
        stated = paper.runs.select("run_name", stated="preset_token_param_ratio")
        both = derived.join(stated, on="run_name")
        assert both["preset_token_param_ratio"].equals(both["stated"], null_equal=True), name


@published
def test_a_table_of_curves_gives_the_curves_of_the_pickle(tmp_path: Path) -> None:
    """The tidy curves are thinned ones of the same pickles."""
    shutil.copy(PAPER / "raw" / "isoflop_llama_ctx2048_wandb_data.pkl", tmp_path)
    full = read_published(tmp_path).curves
    shutil.copy(PAPER / "tidy" / "curves_isoflop_llama_ctx2048.parquet", tmp_path)
    thin = read_published(tmp_path).curves
    assert 7_000 < thin.height < full.height
    both = thin.join(full, on=["run_key", "step"], suffix="_full")
    assert both.height == thin.height
    for name in ("loss", "train_loss", "lr", "step_time_s", "grad_norm_max", "tokens"):
        assert both[name].equals(both[f"{name}_full"], null_equal=True), name


@published
def test_a_reconstruction_gives_way_to_the_run(tmp_path: Path) -> None:
    shutil.copy(PAPER / "tidy" / "runs_isoflop_mlstm_ctx2048_recovered.csv", tmp_path)
    before = read_published(tmp_path).runs
    row = before.filter(pl.col("d_model") == 1152).sort("steps").to_dicts()[0]
    run = mlstm(
        "dclm_mLSTMv1_500M_ctx2048_the_real_one", run_id="real", steps=row["steps"], loss=row["loss"] + 1e-4,
        d_model=1152, heads=9, blocks=row["num_blocks"], batch=512, peak_lr=row["peak_lr"], context=2048,
    )  # fmt: skip
    save(tmp_path / "isoflop_mlstm_ctx2048_wandb_data.pkl", {"sclaw_mlstm_ctx_iso1": [run]})
    after = read_published(tmp_path).runs
    assert after.height == before.height
    assert row["run_key"] not in set(after["run_key"])
    assert after.filter(pl.col("published_id") == "real")["loss_exact"].to_list() == [True]


@published
def test_a_bounded_loss_gives_way_to_the_logged_one(tmp_path: Path) -> None:
    """The recovered table knows the ids of the xLSTM runs at 8192, and of some only bounds of the loss."""
    shutil.copy(PAPER / "tidy" / "runs_isoflop_mlstm_ctx8192_recovered.csv", tmp_path)
    before = read_published(tmp_path).runs
    rows = before.filter(~pl.col("loss_exact")).sort("run_key").head(2).to_dicts()
    runs = []
    for row, loss in zip(rows, (rows[0]["loss"] + 1e-5, 2.0), strict=True):
        shape = {"d_model": row["d_model"], "heads": row["num_heads"], "blocks": row["num_blocks"]}
        recipe = {"batch": row["batch_size"], "peak_lr": row["peak_lr"], "steps": row["steps"]}
        runs.append(mlstm(row["run_name"], run_id=row["published_id"], loss=loss, **shape, **recipe))
    save(tmp_path / MLSTM, {"sclaw_iso": runs})
    study = read_published(tmp_path)
    after = study.runs.filter(pl.col("run_key").is_in([row["run_key"] for row in rows])).sort("run_key")
    assert study.runs.height == before.height
    assert after["loss_exact"].to_list() == [True, True]
    assert after["loss"].to_list() == [rows[0]["loss"] + 1e-5, 2.0] == after["loss_low"].to_list()
    (told,) = kinds(study)["disagreement"]
    assert told.startswith(f"loss of {rows[1]['run_name']} is 2.0 in {MLSTM} and ")


@published
def test_inference_is_in_seconds_and_once(paper: PublishedStudy) -> None:
    table = paper.inference
    assert table.schema == INFERENCE_SCHEMA
    assert dict(table.group_by("measurement_set").len().rows()) == {"paper": 1560, "raw": 2340}
    at_16k = table.filter(
        (pl.col("measurement_set") == "paper")
        & (pl.col("batch_size") == 1)
        & (pl.col("prefill_length") == 16384)
    )
    times = {row["model"]: row for row in at_16k.iter_rows(named=True)}
    assert times["llama2_7b"]["ttft_s"] == pytest.approx(0.778, abs=5e-4)  # PAPER.md, section 4.7
    assert times["xlstm_7b"]["ttft_s"] == pytest.approx(0.530, abs=5e-4)
    assert times["llama2_7b"]["step_time_s"] == pytest.approx(0.0286, abs=5e-5)
    assert times["xlstm_7b"]["step_time_s"] == pytest.approx(0.0062, abs=5e-5)
    assert not (table["ttft_s"] <= 0).any()
    alone = read_published(PAPER / "tidy" / "inference_ttft_steptime.csv").inference
    ours = table.filter(pl.col("measurement_set") == "paper")
    for name in ("model", "batch_size", "prefill_length", "d_model", "ffn_dim", "chunk_size"):
        assert alone[name].equals(ours[name], null_equal=True)
    assert math.isclose(alone["ttft_s"].sum(), ours["ttft_s"].sum(), rel_tol=1e-12)
