"""Every law: its formula, its slopes, its conversions, its gradients."""

import numpy as np
import pytest

from sweeps.laws.engine import ESTIMATORS, estimator, pose
from sweeps.laws.forms import LAWS, Law, PowerSum
from sweeps.laws.objective import Problem, evaluate, model
from sweeps.laws.types import FitError
from sweeps.laws.varpro import complete, evaluate_projected, exponents_of
from tests.sweeps.laws.surfaces import FORMULAS, TRUTH, grid, response


def noisy_problem(law: Law, name: str = "ls-log", delta: float = 0.02) -> Problem:
    inputs = grid()
    y = response(law.name, TRUTH[law.name], inputs, law.inputs)
    y = y * np.exp(0.02 * np.random.default_rng(3).standard_normal(len(y)))
    return pose(law, inputs, y, estimator(name, delta).objective, np.ones(len(y)))


def near_truth(problem: Problem, rows: int = 4) -> np.ndarray:
    truth = np.array([list(TRUTH[problem.law.name].values())])
    theta = problem.law.from_public(truth, problem.center)
    return theta + 0.1 * np.random.default_rng(1).standard_normal((rows, theta.shape[1]))


def central(function, theta: np.ndarray, step: float = 1e-6) -> np.ndarray:  # type: ignore[no-untyped-def]
    """d function / d theta_j on a new second axis."""
    steps = step * np.eye(theta.shape[1])
    return np.stack([(function(theta + s) - function(theta - s)) / (2 * step) for s in steps], axis=1)


def test_every_law_has_a_truth() -> None:
    assert set(LAWS) == set(TRUTH) == set(FORMULAS)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
class TestLaw:
    def test_predicts_its_printed_formula(self, law: Law) -> None:
        inputs = grid()
        expected = response(law.name, TRUTH[law.name], inputs, law.inputs)
        by_name = law.predict(TRUTH[law.name], **{name: inputs[name] for name in law.inputs})
        np.testing.assert_allclose(by_name, expected, rtol=1e-12)
        assert tuple(TRUTH[law.name]) == law.params

    def test_centred_and_public_parameters_convert_both_ways(self, law: Law) -> None:
        problem = noisy_problem(law)
        theta = near_truth(problem)
        back = law.from_public(law.to_public(theta, problem.center), problem.center)
        np.testing.assert_allclose(back, theta, rtol=1e-10, atol=1e-12)

    def test_centring_does_not_move_the_surface(self, law: Law) -> None:
        problem, inputs = noisy_problem(law), grid()
        theta = near_truth(problem)
        outside = law.predict(law.to_public(theta, problem.center), **{k: inputs[k] for k in law.inputs})
        np.testing.assert_allclose(np.exp(model(problem, theta)[0]), outside, rtol=1e-10)

    @pytest.mark.parametrize("name", ["ls-log", "ls"])
    def test_jacobian_equals_finite_differences(self, law: Law, name: str) -> None:
        problem = noisy_problem(law, name)
        theta = near_truth(problem)
        expected = central(lambda at: model(problem, at)[0], theta)
        jacobian = model(problem, theta)[1]
        np.testing.assert_allclose(jacobian, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())

    @pytest.mark.parametrize("name", ["huber-log", "ls-log", "ls"])
    def test_gradient_equals_finite_differences(self, law: Law, name: str) -> None:
        problem = noisy_problem(law, name)
        theta, weights = near_truth(problem), np.random.default_rng(5).integers(0, 3, len(problem.y))
        expected = central(lambda at: evaluate(problem, at, weights).value, theta)
        gradient = evaluate(problem, theta, weights).gradient
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())

    def test_starts_bracket_the_level(self, law: Law) -> None:
        starts = law.starts(np.log(2.5))
        problem = noisy_problem(law)
        middle = Problem(
            law=law, x=np.zeros((len(law.inputs), 1)), center=problem.center, y=np.ones(1),
            log_y=np.zeros(1), objective=problem.objective,
        )  # fmt: skip
        np.testing.assert_allclose(model(middle, starts)[0], np.log(2.5), atol=1e-12)
        assert len(starts) <= 50


@pytest.mark.parametrize("law", [law for law in LAWS.values() if law.amplitudes], ids=lambda law: law.name)
def test_projected_gradient_equals_finite_differences(law: Law) -> None:
    problem = noisy_problem(law, "vp")
    theta = near_truth(problem)[:, exponents_of(law)]
    weights = np.random.default_rng(5).integers(0, 3, len(problem.y))
    expected = central(lambda at: evaluate_projected(problem, at, weights).value, theta, 1e-5)
    gradient = evaluate_projected(problem, theta, weights).gradient
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_projection_finds_the_amplitudes_of_a_direct_solve() -> None:
    problem = noisy_problem(LAWS["chinchilla"], "vp")
    outer, weights = np.array([[0.3, 0.3]]), np.ones(len(problem.y))
    theta = complete(problem, outer, weights)
    direct = evaluate(problem, theta, weights)
    np.testing.assert_allclose(direct.gradient[0, :3], 0.0, atol=1e-10)
    np.testing.assert_allclose(evaluate_projected(problem, outer, weights).value, direct.value, rtol=1e-12)


def test_projection_keeps_amplitudes_non_negative() -> None:
    """Where the loss tends to a negative floor, E stops at exactly 0 and the rest is the best without it."""
    inputs = grid()
    y = 406.4 / inputs["N"] ** 0.34 + 410.7 / inputs["D"] ** 0.28 - 0.15
    problem = pose(LAWS["chinchilla"], inputs, y, estimator("vp").objective, np.ones(len(y)))
    theta = complete(problem, np.array([[0.34, 0.28]]), np.ones(len(y)))
    without = pose(LAWS["no-E"], inputs, y, estimator("vp").objective, np.ones(len(y)))
    assert theta[0, 2] == -np.inf
    expected = complete(without, np.array([[0.34, 0.28]]), np.ones(len(y)))
    np.testing.assert_allclose(theta[0, :2], expected[0, :2], rtol=1e-12)


@pytest.mark.parametrize("name", ["gamma", "kaplan"])
def test_projection_refuses_laws_that_are_not_separable(name: str) -> None:
    with pytest.raises(FitError, match=f"{name} is not: use ls"):
        exponents_of(LAWS[name])


def test_gadre_reads_over_compute_and_token_ratio() -> None:
    """L(C, M) of the paper, from its own two coefficients and eta."""
    law = LAWS["over-training"]
    params = np.array([list(TRUTH[law.name].values())])
    link = {name: float(column[0]) for name, column in law.derived(params).items()}
    C, M = np.array([1e19, 3e20]), np.array([20.0, 640.0])
    by_ratio = (link["a_CM"] * M ** link["eta"] + link["b_CM"] * M ** -link["eta"]) * C ** -link["eta"]
    np.testing.assert_allclose(law.predict_at(params[0], C, M), 1.84 + by_ratio, rtol=1e-12)  # type: ignore[attr-defined]


def test_a_law_is_added_by_writing_its_terms() -> None:
    law = PowerSum(
        name="width-depth",
        formula="L = E + A w^-p + B l^-q + G D^-r",
        summands={"A": {"w": "-p"}, "B": {"l": "-q"}, "G": {"D": "-r"}, "E": {}},
        inputs=("w", "l", "D"),
    )
    assert law.params == ("A", "B", "G", "E", "p", "q", "r")
    w, l, D = np.array([512.0, 1024.0]), np.array([8.0, 24.0]), np.array([1e10, 1e11])
    expected = 1.5 + 20 / w**0.4 + 3 / l**0.6 + 400 / D**0.3
    np.testing.assert_allclose(
        law.predict(np.array([20, 3, 400, 1.5, 0.4, 0.6, 0.3]), w=w, l=l, D=D), expected
    )


def test_estimators_say_what_they_minimise() -> None:
    described = [str(estimator(name, 1e-3)) for name in ESTIMATORS]
    assert len(set(described)) == len(ESTIMATORS)
    assert described[0] == "sum of Huber(0.001) of the residuals of ln L"
    with pytest.raises(FitError, match="there are huber-log, ls-log, ls, vp"):
        estimator("ols")
    with pytest.raises(FitError, match="above 0"):
        estimator("huber-log", 0.0)
