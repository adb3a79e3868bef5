"""The runtime model: recovered from exact times, robust, honest about the unseen, and on published data."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize

from sweeps.inference.runtime import KINDS, TERMS, HeldOut, fit_runtime, measured, solve, work, works
from sweeps.inference.table import complete, from_published
from sweeps.laws import FitError
from xlstm.accounting import (
    BytesPerElement,
    count_parameters,
    decode_bytes,
    decode_flops,
    mlstm_config,
    prefill_bytes,
    prefill_flops,
    state_bytes,
    transformer_config,
)
from xlstm.chain import most_chained
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.timing.points import Point

PAPER = Path("../shared/data/paper")
STORED = BytesPerElement()
SHAPES = ((256, 4), (512, 12), (1024, 8), (768, 20))
CONFIGS: dict[str, list[MLSTMConfig | TransformerConfig]] = {
    "mlstm": [mlstm_config(d_model=d, num_blocks=b, num_heads=4, vocab_size=1000) for d, b in SHAPES],
    "transformer": [
        transformer_config(d_model=d, num_blocks=b, num_heads=h, vocab_size=1000)
        for (d, b), h in zip(SHAPES, (4, 4, 8, 4), strict=True)
    ],
}
TRUE = {
    "ttft": np.array([1 / 3e14, 1 / 5e13, 1 / 2e12, 4e-5, 1e-3]),
    "step_time": np.array([1 / 3e12, 1 / 2e12, 1 / 4e14, 1e-11, 1e-9, 2e-5, 1e-5, 3e-4]),
}


def made_table(arch: str, noise: float = 0.0, seed: int = 0) -> pl.DataFrame:
    """Times that follow the model exactly, or with relative noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for size, config in enumerate(CONFIGS[arch]):
        for T in (128, 1024, 8192):
            for B in (1, 8, 64):
                row = Point(model=config, prefill_length=T, batch_size=B, generated=1).describe(str(size))
                for kind, column in (("ttft", "ttft_s"), ("step_time", "step_time_s")):
                    seconds = work(kind, config, T, B, STORED) @ TRUE[kind]  # type: ignore[arg-type]
                    row[column] = float(seconds * np.exp(noise * rng.standard_normal()))
                rows.append(row | {"status": "finished", "device": "made up"})
    return complete(pl.DataFrame(rows, infer_schema_length=None))


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_times_give_back_their_coefficients(arch: str, kind: str) -> None:
    table = made_table(arch)
    model = fit_runtime(table, arch, kind, resamples=20, holdout=0.25)  # type: ignore[arg-type]
    assert model.largest_error < 1e-6
    assert model.held_out is not None
    assert model.held_out.median_error < 1e-6
    assert len(model.held_out.predicted) == len(model.held_out.observed) == model.n_points
    used = works(kind, table) @ np.diag(TRUE[kind])  # type: ignore[arg-type]
    matters = used.max(axis=0) > 1e-3 * used.sum(axis=1).max()
    present = model.present & matters
    np.testing.assert_allclose(model.coefficients[present], TRUE[kind][present], rtol=1e-3)


def test_works_are_the_numbers_of_the_accounting() -> None:
    mlstm, transformer = CONFIGS["mlstm"][1], CONFIGS["transformer"][1]
    for config in (mlstm, transformer):
        maps, mixing, moved, blocks, one = work("ttft", config, 1000, 3, STORED)
        assert maps + mixing == pytest.approx(prefill_flops(config, 1000, batch_size=3))
        assert moved == prefill_bytes(config, 1000, batch_size=3)
        assert (blocks, one) == (config.num_blocks, 1)
        weights, state, flops, *_ = work("step_time", config, 1000, 3, STORED)
        assert flops == decode_flops(config, 1000, batch_size=3)
        embedding = config.d_model * config.vocab_size
        assert weights == 2 * (count_parameters(config) - embedding)
        passes = 2 if isinstance(config, MLSTMConfig) else 1
        assert state == passes * state_bytes(config, 1000, batch_size=3)
        assert weights + state < decode_bytes(config, 1000, batch_size=3)
    # By hand: 12 blocks, 4 heads, 1000 keys, 3 sequences.
    assert list(work("step_time", transformer, 1000, 3, STORED)[3:5]) == [12 * 4 * 1000 * 3, 12 * 1000]
    assert list(work("step_time", mlstm, 1000, 3, STORED)[3:5]) == [0, 0]
    # Of more sequences than a chain has a block's overhead is another.
    few = most_chained(mlstm.d_model)
    overheads = [list(work("step_time", mlstm, 1000, B, STORED)[5:]) for B in (few, few + 1)]
    assert overheads == [[12, 0, 1], [12, 12, 1]]


def test_the_solution_is_the_minimum_that_a_general_optimiser_finds() -> None:
    table = made_table("transformer", noise=0.01)
    X, t = works("ttft", table), table["ttft_s"].to_numpy()
    found = solve(X, t)

    def loss(log_c: np.ndarray) -> float:
        error = X @ np.exp(log_c) / t - 1
        return float(np.sum(error**2))

    start = np.log(np.maximum(found, 1e-30))
    best = minimize(loss, start + 0.3, method="Nelder-Mead", options={"maxiter": 20000, "fatol": 1e-14})
    assert loss(start) <= best.fun * (1 + 1e-4)


def test_an_outlier_does_not_move_the_fit() -> None:
    table = made_table("mlstm")
    broken = table.with_columns(
        ttft_s=pl.when(pl.int_range(pl.len()) == 5).then(pl.col("ttft_s") * 20).otherwise(pl.col("ttft_s"))
    )
    model = fit_runtime(broken, "mlstm", "ttft", resamples=10)
    clean = works("ttft", table) @ model.coefficients / table["ttft_s"].to_numpy() - 1
    assert np.abs(clean).max() < 0.05


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = []
    for seed in range(20):
        model = fit_runtime(made_table("mlstm", noise=0.05, seed=seed), "mlstm", "step_time", resamples=60)
        point = work("step_time", CONFIGS["mlstm"][1], 4096, 8, STORED)
        drawn = np.quantile(model.predict_draws(point[None])[0], [0.025, 0.975])
        held.append(drawn[0] <= point @ TRUE["step_time"] <= drawn[1])
    assert np.mean(held) >= 0.8


def test_two_sizes_cannot_tell_all_terms_apart_and_the_model_says_so() -> None:
    table = made_table("mlstm")
    assert fit_runtime(table, "mlstm", "step_time", resamples=10).confounded == ()
    two = fit_runtime(table.filter(pl.col("model").is_in(["0", "1"])), "mlstm", "step_time", resamples=10)
    assert two.confounded == ("weights", "blocks", "constant")
    assert two.largest_error < 1e-6


def test_terms_that_no_point_has_are_left_out() -> None:
    model = fit_runtime(made_table("mlstm"), "mlstm", "step_time", resamples=10)
    assert set(model.rates()) == set(TERMS["step_time"]) - {"scores", "keys"}


def test_what_cannot_be_fitted_is_said() -> None:
    table = made_table("mlstm")
    with pytest.raises(FitError, match="no finished point"):
        fit_runtime(table, "transformer", "ttft")
    with pytest.raises(FitError, match="needs 5"):
        fit_runtime(table.head(3), "mlstm", "ttft")
    first = pl.int_range(pl.len()) < 9
    two = table.with_columns(device=pl.when(first).then(pl.lit("a")).otherwise(pl.lit("b")))
    with pytest.raises(FitError, match="a and b"):
        fit_runtime(two, "mlstm", "ttft")
    with pytest.raises(FitError, match="holdout"):
        fit_runtime(table.head(6), "mlstm", "ttft", holdout=0.9)
    few = table.head(8)  # an mLSTM's steps have six of the eight terms
    assert fit_runtime(few, "mlstm", "step_time", resamples=10, holdout=0.25).held_out is not None
    with pytest.raises(FitError, match="leaves 5 of 8 points to fit 6 terms"):
        fit_runtime(few, "mlstm", "step_time", resamples=10, holdout=0.4)


@pytest.mark.skipif(not PAPER.exists(), reason="the published measurements are not there")
def test_published_points_are_predicted_unseen_within_ten_percent() -> None:
    from sweeps.published import read_published

    table = from_published(read_published(PAPER, lambda message: None).inference)
    assert set(table["model"]) == {"160M", "400M", "830M", "1.4B", "2.7B", "7B"}
    for arch in ("mlstm", "transformer"):
        for kind in KINDS:
            model = fit_runtime(table, arch, kind, resamples=10, holdout=0.2)
            assert model.held_out is not None
            assert model.held_out.median_error < 0.10, (arch, kind)
            assert len(model.held_out.observed) == measured(table, arch, kind).height
    mlstm = fit_runtime(table, "mlstm", "step_time", resamples=10)
    assert 2.5e12 < mlstm.rates()["weights"].value < 3.6e12  # an H100 moves 3.35e12 bytes a second


def held_out(table: pl.DataFrame, **settings: int) -> HeldOut:
    found = fit_runtime(table, "mlstm", "ttft", holdout=0.2, resamples=settings.get("resamples", 2)).held_out
    assert found is not None
    return found


def test_a_point_is_predicted_by_a_fit_that_did_not_see_it() -> None:
    """Ten times as slow, it changes the predictions of all parts but its own."""
    table = made_table("mlstm", noise=0.05)
    slower = pl.when(pl.int_range(pl.len()) == 7).then(10).otherwise(1)
    before, after = held_out(table), held_out(table.with_columns(ttft_s=pl.col("ttft_s") * slower))
    same = np.isclose(before.predicted, after.predicted, rtol=1e-9)
    assert same[7]
    assert 0.1 < same.mean() < 0.3


def test_what_is_held_out_does_not_hang_on_the_resamples() -> None:
    table = made_table("mlstm", noise=0.05)
    few, many = held_out(table, resamples=2), held_out(table, resamples=5)
    np.testing.assert_array_equal(few.predicted, many.predicted)
