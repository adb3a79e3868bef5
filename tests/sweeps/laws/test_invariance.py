"""What must not matter does not: order, units, repeats against weights, size of the objective, storage."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from sweeps.laws import (
    ESTIMATORS,
    LAWS,
    Fitted,
    LawFit,
    LawSettings,
    Points,
    fit,
    minimum,
    points_from_arrays,
)
from sweeps.laws.bootstrap import Scheme, draw_weights, run_bootstrap
from tests.sweeps.laws.surfaces import TRUTH, grid, response

LAW = LAWS["chinchilla"]


@pytest.fixture(scope="module")
def noisy() -> dict[str, np.ndarray]:
    inputs, rng = grid(), np.random.default_rng(11)
    y = response("chinchilla", TRUTH["chinchilla"], inputs, ("N", "D"))
    return inputs | {"loss": y * np.exp(0.01 * rng.standard_t(3, len(y)))}


def solved(data: dict[str, np.ndarray], name: str, weights: np.ndarray | None = None) -> Fitted:
    w = np.ones(len(data["loss"])) if weights is None else weights
    return minimum(LAW, data, data["loss"], w, name=name, delta=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
class TestMinimum:
    def test_row_order(self, name: str, noisy: dict[str, np.ndarray]) -> None:
        order = np.random.default_rng(0).permutation(len(noisy["loss"]))
        shuffled = {key: column[order] for key, column in noisy.items()}
        np.testing.assert_allclose(solved(shuffled, name).params, solved(noisy, name).params, rtol=1e-6)

    def test_units_of_inputs(self, name: str, noisy: dict[str, np.ndarray]) -> None:
        plain = solved(noisy, name).params
        millions = solved(noisy | {"N": noisy["N"] / 1e6, "D": noisy["D"] / 1e9}, name).params
        factor = np.array([1e6 ** -plain[3], 1e9 ** -plain[4], 1.0, 1.0, 1.0])
        np.testing.assert_allclose(millions, plain * factor, rtol=1e-6)

    def test_repeated_rows_are_weights(self, name: str, noisy: dict[str, np.ndarray]) -> None:
        times = np.random.default_rng(1).integers(1, 4, len(noisy["loss"]))
        repeated = {key: np.repeat(column, times) for key, column in noisy.items()}
        by_weight = solved(noisy, name, times.astype(float))
        by_rows = solved(repeated, name)
        np.testing.assert_allclose(by_weight.params, by_rows.params, rtol=1e-6)
        assert by_weight.solution.value == pytest.approx(by_rows.solution.value, rel=1e-10)

    @pytest.mark.parametrize("factor", [1e-8, 1e6])
    def test_scale_of_the_objective(self, name: str, factor: float, noisy: dict[str, np.ndarray]) -> None:
        scaled = solved(noisy, name, np.full(len(noisy["loss"]), factor))
        plain = solved(noisy, name)
        np.testing.assert_allclose(scaled.params, plain.params, rtol=1e-6)
        assert scaled.solution.value == pytest.approx(factor * plain.solution.value, rel=1e-9)
        assert scaled.solution.scaled_gradient <= 1e-9

    def test_a_row_of_weight_zero_is_not_there(self, name: str, noisy: dict[str, np.ndarray]) -> None:
        weights = np.ones(len(noisy["loss"]))
        weights[[3, 17]] = 0.0
        kept = {key: column[weights > 0] for key, column in noisy.items()}
        np.testing.assert_allclose(solved(noisy, name, weights).params, solved(kept, name).params, rtol=1e-6)


def test_units_of_loss_in_log_space(noisy: dict[str, np.ndarray]) -> None:
    """Bits for nats multiplies A, B and E and leaves the exponents alone."""
    nats = solved(noisy, "huber-log").params
    bits = solved(noisy | {"loss": noisy["loss"] / np.log(2)}, "huber-log").params
    np.testing.assert_allclose(bits, nats / np.array([np.log(2)] * 3 + [1, 1]), rtol=1e-6)


def test_bootstrap_of_weights_equals_bootstrap_of_repeated_rows(noisy: dict[str, np.ndarray]) -> None:
    times = np.random.default_rng(1).integers(1, 4, len(noisy["loss"]))
    by_weight = draw_weights(Scheme(), times.astype(float), 50, seed=4)
    by_rows = draw_weights(Scheme(), np.ones(times.sum()), 50, seed=4)
    edges = np.concatenate([[0], np.cumsum(times)[:-1]])
    np.testing.assert_array_equal(by_weight, np.add.reduceat(by_rows, edges, axis=1))


def test_block_size_does_not_change_draws(
    noisy: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = solved(noisy, "huber-log")

    def draws() -> np.ndarray:
        theta, w = best.solution.theta, best.weights
        return run_bootstrap(best.problem, best.how, theta, w, Scheme(), resamples=40, seed=0).params

    whole = draws()
    monkeypatch.setattr("sweeps.laws.engine._BLOCK", 300)
    np.testing.assert_allclose(draws(), whole, rtol=1e-6)


def test_strata_keep_their_sizes_and_clusters_stay_whole() -> None:
    labels = np.array(["x"] * 3 + ["y"] * 5 + ["z"] * 2)
    stratified = draw_weights(Scheme(labels=labels, label="budget"), np.ones(10), 200, seed=0)
    for label, size in (("x", 3), ("y", 5), ("z", 2)):
        assert (stratified[:, labels == label].sum(axis=1) == size).all()
    clustered = draw_weights(Scheme(kind="cluster", labels=labels, label="run"), np.ones(10), 200, seed=0)
    assert (clustered[:, [0, 3, 8]].sum(axis=1) == 3).all()
    for label in "xyz":
        block = clustered[:, labels == label]
        assert (block == block[:, :1]).all()
    assert stratified.mean() == pytest.approx(1.0)
    assert clustered[:, 0].mean() == pytest.approx(1.0, abs=0.2)


def as_points(noisy: dict[str, np.ndarray]) -> Points:
    return points_from_arrays(noisy["N"], noisy["D"], noisy["loss"], budget=np.repeat([1e19, 1e20], 28))


def as_frame(noisy: dict[str, np.ndarray]) -> pl.DataFrame:
    budget = np.repeat([1e19, 1e20], 28)
    return pl.DataFrame({"N": noisy["N"], "D": noisy["D"], "loss": noisy["loss"], "budget": budget})


@pytest.mark.parametrize("kind", [as_points, as_frame, lambda noisy: as_frame(noisy).to_dict()])
def test_points_frames_and_mappings_give_one_answer(
    kind: Callable[[dict[str, np.ndarray]], object], noisy: dict[str, np.ndarray]
) -> None:
    def fitted(table: object) -> LawFit:
        return fit(table, LawSettings(resamples=30))  # type: ignore[arg-type]

    one, other = fitted(as_frame(noisy)), fitted(kind(noisy))
    assert one.params == other.params
    assert one.derived["a"].method == "pairs bootstrap, 30 resamples, stratified by budget"
    assert one.clustered == other.clustered


def test_a_seed_repeats_the_intervals_and_another_moves_them(noisy: dict[str, np.ndarray]) -> None:
    first, again = (fit(as_frame(noisy), LawSettings(resamples=40, seed=1)) for _ in range(2))
    other = fit(as_frame(noisy), LawSettings(resamples=40, seed=2))
    assert first.params == again.params
    assert first.params["alpha"].value == other.params["alpha"].value
    assert first.params["alpha"].low != other.params["alpha"].low
