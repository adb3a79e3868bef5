"""Without noise every law gives back its parameters under every estimator; with noise the intervals cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.laws import ESTIMATORS, LAWS, Law, LawSettings, fit_arrays, minimum
from sweeps.laws.bootstrap import Scheme, run_bootstrap
from sweeps.laws.engine import descend, estimator, pose
from tests.sweeps.laws.surfaces import TRUTH, grid, response

PAIRS = [(law, name) for law in LAWS for name in ESTIMATORS if name != "vp" or LAWS[law].amplitudes]


def surfaces(law: Law) -> st.SearchStrategy[dict[str, float]]:
    """Laws around the known truth: amplitudes and floors within a factor 1.5, rates within 15 %."""

    def around(name: str, value: float) -> st.SearchStrategy[float]:
        spread = 1.5 if name in ("A", "B", "E", "L_inf", "alpha'", "beta'") else 1.15
        return st.floats(1 / spread, spread).map(lambda factor: value * factor)

    return st.fixed_dictionaries({name: around(name, value) for name, value in TRUTH[law.name].items()})


@pytest.mark.parametrize(("law_name", "name"), PAIRS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_recovers_a_law_without_noise(law_name: str, name: str, data: st.DataObject) -> None:
    law, inputs = LAWS[law_name], grid()
    truth = data.draw(surfaces(law))
    y = response(law_name, truth, inputs, law.inputs)
    found = minimum(law, inputs, y, np.ones(len(y)), name=name, delta=1e-3)
    recovered = law.quantities(found.params[None])
    expected = law.quantities(np.array([[truth[key] for key in law.params]]))
    for key, value in expected.items():
        # An amplitude is e to a rate times ln N, some 20 times as sensitive as the rate.
        tolerance = 1e-5 if key in ("A", "B", "alpha'", "beta'", "a_CM", "b_CM") else 1e-6
        assert recovered[key][0] == pytest.approx(value[0], rel=tolerance), key


@pytest.mark.parametrize("name", ESTIMATORS)
def test_exact_data_report_an_exact_fit(name: str) -> None:
    inputs = grid()
    y = response("chinchilla", TRUTH["chinchilla"], inputs, ("N", "D"))
    fitted = fit_arrays(LAWS["chinchilla"], inputs, y, LawSettings(estimator=name, resamples=50))
    assert fitted.flags == ()
    assert fitted.diagnostics["agreeing_starts"] == fitted.diagnostics["n_starts"]
    assert np.abs(fitted.residuals).max() < 1e-10
    assert fitted.params["alpha"].high - fitted.params["alpha"].low < 1e-8


@pytest.mark.parametrize("name", ["ls", "ls-log"])
def test_projection_and_direct_search_agree_on_noisy_data(name: str) -> None:
    inputs, rng = grid(), np.random.default_rng(0)
    y = response("chinchilla", TRUTH["chinchilla"], inputs, ("N", "D"))
    y = y * np.exp(0.01 * rng.standard_normal(len(y)))
    w = np.ones(len(y))
    direct = minimum(LAWS["chinchilla"], inputs, y, w, name=name, delta=1e-3)
    projected = minimum(LAWS["chinchilla"], inputs, y, w, name="vp", delta=1e-3)
    same = np.allclose(direct.params, projected.params, rtol=1e-6)
    assert same == (name == "ls"), "loss space and log space are different estimators"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "resamples"), [("ls-log", 200), ("huber-log", 120)])
def test_pairs_intervals_cover(name: str, resamples: int) -> None:
    """The 95 % intervals of a from 300 samples of 60 points with 1 % noise."""
    law, rng = LAWS["chinchilla"], np.random.default_rng(2024)
    N, D = np.exp(rng.uniform(np.log(5e7), np.log(1e10), 60)), np.exp(rng.uniform(21.0, 26.0, 60))
    truth = np.array([list(TRUTH["chinchilla"].values())])
    clean = law.predict(truth[0], N=N, D=D)
    a, w = law.derived(truth)["a"][0], np.ones(60)
    how, covered = estimator(name, 3e-3), 0
    for sample in range(300):
        y = clean * np.exp(0.01 * rng.standard_normal(60))
        problem = pose(law, {"N": N, "D": D}, y, how.objective, w)
        start = law.from_public(truth, problem.center)
        best = descend(problem, how, start, w, tolerance=1e-9).theta[0]
        run = run_bootstrap(problem, how, best, w, Scheme(), resamples=resamples, seed=sample)
        assert run.converged >= 0.99
        low, high = np.nanquantile(law.quantities(run.params)["a"], [0.025, 0.975])
        covered += low <= a <= high
    assert 0.92 <= covered / 300 <= 0.99
