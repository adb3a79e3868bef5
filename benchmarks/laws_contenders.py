"""Who fits: ours, the textbook with scipy, and the peers that pip can install. One process each, one core.

Every contender gets the same points, the same resamples, and the same objective where it has it: the sum of
Huber(1e-3) of the residuals of ln L (Hoffmann et al. 2022, eq. 3). `huber_sum` below judges all of them and
owes nothing to the code under test.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize

Array = np.ndarray
Row = dict[str, Any]

DELTA = 1e-3
RESAMPLES = 4000
SEED = 0
NAMES = ("A", "B", "E", "alpha", "beta")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Points and how much of a slow contender's work is really done; the rest is extrapolated."""

    N: Array
    D: Array
    loss: Array
    full: bool
    """All starts of the grids; else a tenth."""
    resamples: int = RESAMPLES

    @cached_property
    def log_N(self) -> Array:
        return np.log(self.N)

    @cached_property
    def log_D(self) -> Array:
        return np.log(self.D)

    @cached_property
    def log_loss(self) -> Array:
        return np.log(self.loss)

    @property
    def weights(self) -> Array:
        """(resamples, n): how often each resample holds each point."""
        rng, n = np.random.default_rng(SEED), len(self.N)
        return rng.multinomial(n, np.full(n, 1 / n), size=self.resamples).astype(float)


def huber_sum(theta: Array, task: Task, weights: Array | float = 1.0) -> float:
    """The objective at theta = (ln A, ln B, ln E, alpha, beta), as printed in the paper.

    As lean as numpy allows: whoever loops over it with scipy must not be slow on our account.
    """
    return float(np.sum(weights * _huber(_predicted(theta, task)[0] - task.log_loss)))


def _huber(r: Array) -> Array:
    size = np.abs(r)
    return np.where(size <= DELTA, 0.5 * r * r, DELTA * (size - 0.5 * DELTA))


def _predicted(theta: Array, task: Task) -> tuple[Array, Array, Array]:
    """ln L (n,) and the logarithms of the two summands that fall."""
    a, b, e, alpha, beta = theta
    by_N, by_D = a - alpha * task.log_N, b - beta * task.log_D
    return np.logaddexp(np.logaddexp(by_N, by_D), e), by_N, by_D


def _with_gradient(theta: Array, task: Task, weights: Array | float, scale: float) -> tuple[float, Array]:
    log_L, by_N, by_D = _predicted(theta, task)
    r = log_L - task.log_loss
    psi = weights * np.clip(r, -DELTA, DELTA)
    N_part, D_part = np.exp(by_N - log_L) * psi, np.exp(by_D - log_L) * psi
    rest = psi.sum() - N_part.sum() - D_part.sum()
    by_exponents = (-(N_part @ task.log_N), -(D_part @ task.log_D))
    gradient = np.array([N_part.sum(), D_part.sum(), rest, *by_exponents])
    return scale * float(np.sum(weights * _huber(r))), scale * gradient


def polished(task: Task, weights: Array, starts: Iterable[Array]) -> float:
    """The lowest objective that scipy finds: L-BFGS-B from every start, a simplex from the best end."""
    scale = 1e6
    ends = [
        minimize(
            _with_gradient, start, (task, weights, scale), jac=True, method="L-BFGS-B",
            options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-9},
        )
        for start in starts
    ]  # fmt: skip
    best = min(ends, key=lambda end: end.fun)
    fine = minimize(
        lambda theta: scale * huber_sum(theta, task, weights), best.x, method="Nelder-Mead",
        options={"maxiter": 600, "xatol": 1e-9, "fatol": 1e-12},
    )  # fmt: skip
    return float(min(best.fun, fine.fun)) / scale


def sampled_excess(task: Task, ends: Array, every: int) -> list[float]:
    """How far the ends (resamples, 5) of every `every`-th resample lie above its polished minimum, relative.

    scipy starts at the end itself, at the minimum of the whole sample, and at two places around it.
    """
    rng, weights = np.random.default_rng(1), task.weights
    whole = ends.mean(axis=0)
    excess = []
    for row in range(0, len(ends), every):
        around = ends[row] + rng.normal(0, [0.5, 0.5, 0.02, 0.02, 0.02], (2, 5))
        lowest = polished(task, weights[row], [ends[row], whole, *around])
        excess.append(huber_sum(ends[row], task, weights[row]) / lowest - 1.0)
    return excess


def _theta(params: Array) -> Array:
    """(ln A, ln B, ln E, alpha, beta) of public parameters (..., 5)."""
    return np.concatenate([np.log(params[..., :3]), params[..., 3:]], axis=-1)


class Clock:
    """Wall and CPU seconds of a block, those of processes that it started and waited for included."""

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def ours(task: Task) -> Row:
    """From points to the minimum of all starts and 4,000 refitted resamples with their percentiles."""
    from sweeps.laws import LAWS, LawSettings, fit_points, points_from_arrays
    from sweeps.laws.engine import refit

    law, settings = LAWS["chinchilla"], LawSettings(huber_delta=DELTA)
    with Clock() as fitting:
        points = points_from_arrays(task.N, task.D, task.loss)
        best = fit_points(points, law, settings)
    with Clock() as resampling:
        weights = task.weights
        found = refit(best.problem, best.how, best.solution.theta, weights)
        draws = law.quantities(law.to_public(found.theta, best.problem.center))
        low, high = np.quantile(draws["a"], [0.025, 0.975])
    ends = _theta(law.to_public(found.theta, best.problem.center))
    return {
        "params": best.params.tolist(),
        "fit": _seconds(fitting),
        "starts": best.solution.n_starts,
        "bootstrap": _seconds(resampling),
        "interval_of_a": [float(low), float(high)],
        "converged": float(np.mean(found.scaled_gradient <= 1e-7)),
        "ends": ends.tolist(),
        "restarted_excess": _restarted_excess(best, found, weights),
    }


def _restarted_excess(best: Any, found: Any, weights: Array, starts: int = 4) -> float:
    """The largest relative excess of any of the resamples over what `starts` other starts of it reach."""
    from sweeps.laws.engine import refit

    rng, lowest = np.random.default_rng(2), found.value
    for _ in range(starts):
        theta = best.solution.theta + rng.normal(0, 0.2, found.theta.shape)
        lowest = np.minimum(
            lowest, np.nan_to_num(refit(best.problem, best.how, theta, weights).value, nan=np.inf)
        )
    return float(np.max(found.value / lowest - 1.0))


def everything(task: Task) -> Row:
    """What a user gets from `fit`: leverage, conditioning, flags and intervals of everything included."""
    from sweeps.laws import LawSettings, fit, points_from_arrays

    with Clock() as fitting:
        fitted = fit(points_from_arrays(task.N, task.D, task.loss), LawSettings(resamples=task.resamples))
    return {"params": [fitted.params[name].value for name in NAMES], "together": _seconds(fitting)}


def textbook(task: Task, *, analytic: bool = False) -> Row:
    """Hoffmann's 4,500 starts by L-BFGS-B, then a warm-started L-BFGS-B for each resample.

    Finite differences and default tolerances, as everybody writes it; `analytic` gives it the gradient, an
    objective scaled to where the tolerances bite, and so the best that a loop over scipy can do.
    """
    steps = (np.arange(0, 26, 5.0), np.arange(0, 26, 5.0), np.arange(-1, 1.1, 0.5))
    starts = np.array(list(product(*steps, *[np.arange(0, 2.1, 0.5)] * 2)))
    chosen = starts if task.full else starts[::10]
    scale = 1e6 if analytic else 1.0
    fun = partial(_with_gradient, task=task, scale=scale) if analytic else partial(huber_sum, task=task)

    def descend(start: Array, weights: Array | float) -> Any:
        return minimize(lambda x: fun(x, weights=weights), start, jac=analytic, method="L-BFGS-B")

    with Clock() as fitting:
        found = [descend(start, 1.0) for start in chosen]
        best = min(found, key=lambda result: result.fun)
    values = np.array([result.fun for result in found]) / scale
    rows = min(400 if analytic else 200, task.resamples)
    with Clock() as resampling:
        weights = task.weights[:rows]
        ends = np.array([descend(best.x, weights[row]).x for row in range(rows)])
    excess = [
        huber_sum(e, task, w) / polished(task, w, [e, best.x]) - 1
        for e, w in zip(ends[:20], weights, strict=False)
    ]
    return {
        "params": [*np.exp(best.x[:3]), *best.x[3:]],
        "fit": _seconds(fitting, len(starts) / len(chosen)),
        "starts": len(starts),
        "starts_done": len(chosen),
        "successes": int(sum(result.success for result in found)),
        "within_1e-6": int(np.sum(values <= values.min() * (1 + 1e-6))),
        "bootstrap": _seconds(resampling, task.resamples / rows),
        "resamples_done": rows,
        "sampled_excess": excess,
    }


def chinchilla(task: Task) -> Row:
    """`pip install chinchilla`: BFGS in extended precision from a grid of its documentation's kind."""
    import pandas as pd
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    points = 5 if task.full else 3
    axes = {
        "E": np.linspace(1, 2, points), "a": np.linspace(1, 10, points), "b": np.linspace(1, 10, points),
        "alpha": np.linspace(0.1, 0.7, points), "beta": np.linspace(0.1, 0.7, points),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = Chinchilla(folder, axes, loss_fn=partial(log_huber, delta=DELTA), log_level=50)
        columns = {"C": 6 * task.N * task.D, "N": task.N, "D": task.D, "loss": task.loss}
        model.database.df = pd.DataFrame(columns)
        model.visualizer.optim = lambda *figure, **options: None  # its plot is not a part of the fit
        with Clock() as fitting:
            model.fit()
    return {
        "params": [float(getattr(model, name)) for name in NAMES],
        "fit": _seconds(fitting, 5**5 / points**5),
        "starts": 5**5,
        "starts_done": points**5,
    }


def vpnls(task: Task, method: str) -> Row:
    """`pip install 'vpnls[scipy]'`: variable projection, re-weighted for Huber."""
    from vpnls.api import fit_vpnls
    from vpnls.api import huber as huber_loss

    N, D, loss = task.N / 1e6, task.D / 1e9, task.loss.copy()  # its bounds of A and B want these units
    with Clock() as fitting:
        found = fit_vpnls(N, D, loss, method=method, resolution=0.01, loss=huber_loss(DELTA))
    A, B = found.A * 1e6**found.alpha, found.B * 1e9**found.beta
    return {"params": [A, B, found.E, found.alpha, found.beta], "fit": _seconds(fitting)}


def _seconds(clock: Clock, factor: float = 1.0) -> dict[str, float]:
    """Measured seconds times the share of the work that they stand for; 1 where all of it was done."""
    return {"wall": clock.wall * factor, "cpu": clock.cpu * factor, "factor": factor}


CONTENDERS: dict[str, tuple[str, Callable[[Task], Row]]] = {
    "ours": ("**ours**", ours),
    "ours-all": ("ours, `fit` with every diagnostic", everything),
    "textbook": ("textbook: scipy L-BFGS-B, finite differences", textbook),
    "textbook-analytic": ("the same with gradient and scaling", partial(textbook, analytic=True)),
    "chinchilla": ("chinchilla, log_huber", chinchilla),
    "vpnls-grid": ("vpnls, grid .01, Huber", partial(vpnls, method="grid")),
    "vpnls-scipy": ("vpnls, scipy, Huber", partial(vpnls, method="scipy")),
}
"""Name -> (label, what to run)."""


def pin_to_one_core() -> None:
    """This process and its children on one core, where the system can do that."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
