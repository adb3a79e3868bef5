"""The laws. A law is its terms and their slopes; estimators, bootstrap and diagnostics know nothing else.

Inside a fit every law is L = sum_k exp(t_k(theta, x)) with x the *centred* logarithms of the inputs, so an
amplitude is the size of its term in the middle of the data: on the Chinchilla points this takes the condition
number of J'J from 3.5e6 to 3.9e3. Outside, a law speaks its public parameters (A, alpha, ...).

A law that is a sum of power laws is one `PowerSum` entry in `LAWS`. Any other law subclasses `Law` and writes
its terms, its two conversions and its starts: `Gamma` and `Kaplan` do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product

import numpy as np

Array = np.ndarray

_converts = np.errstate(over="ignore", divide="ignore", invalid="ignore")
"""For conversions between centred and public parameters: an amplitude of 0 is the logarithm -inf, a term that
is not there, and a degenerate fit may overflow; `sweeps.laws.identifiability` refuses or flags either."""


@dataclass(frozen=True)
class Term:
    """One summand of a law, exp(log_value), for a batch of parameter rows over n points."""

    log_value: Array
    """Broadcasts to (rows, n); a constant term is (rows, 1)."""
    slopes: Mapping[int, Array | float]
    """d log_value / d theta_j for every parameter the term depends on; broadcasts to (rows, n)."""


class Law(ABC):
    """A law with its public names. All methods take parameters as (rows, p) and broadcast over the rows."""

    name: str
    formula: str
    inputs: tuple[str, ...]
    """Columns that the law reads: N, D, C (FLOPs), T (context length)."""
    params: tuple[str, ...]
    """Public names, in the order of the public vectors."""
    amplitudes: tuple[int, ...] = ()
    """theta_j that scales term k and does nothing else, for each k; empty where a term has none."""
    exponents: Mapping[str, str] = {}
    """Input -> public name of the rate at which it lowers the loss; checks of flat and wild rates use it."""

    @abstractmethod
    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        """The summands at theta (rows, p) and centred log inputs x (inputs, n)."""

    @abstractmethod
    def to_public(self, theta: Array, center: Array) -> Array:
        """Public parameters (rows, p) of centred ones; `center` holds the subtracted mean logarithms."""

    @abstractmethod
    def from_public(self, params: Array, center: Array) -> Array:
        """The inverse of `to_public`."""

    @abstractmethod
    def starts(self, level: float) -> Array:
        """Starting points (starts, p) of a fit to data whose mean log response is `level`."""

    def derived(self, params: Array) -> dict[str, Array]:
        """Quantities (rows,) that follow from public parameters (rows, p) alone."""
        return {}

    @property
    def focus(self) -> str:
        """The parameter or derived quantity that readers ask for first."""
        return self.params[-1]

    def quantities(self, params: Array) -> dict[str, Array]:
        """Parameters and derived quantities by name, each (rows,)."""
        return dict(zip(self.params, params.T, strict=True)) | self.derived(params)

    def predict(self, params: Array | Mapping[str, float], **inputs: Array | float) -> Array:
        """The law at public parameters, (rows, p) or (p,) or by name, over inputs (n,): (rows, n) or (n,)."""
        if isinstance(params, Mapping):
            params = np.array([params[name] for name in self.params])
        rows = np.atleast_2d(np.asarray(params, dtype=float))
        columns = (np.atleast_1d(np.asarray(inputs[name], dtype=float)) for name in self.inputs)
        x = np.log(np.stack(np.broadcast_arrays(*columns)))
        with np.errstate(divide="ignore", invalid="ignore"):  # an amplitude of 0 is a term that is not there
            theta = self.from_public(rows, np.zeros(len(x)))
            value = reduce(np.logaddexp, (term.log_value for term in self.terms(theta, x)))
        return np.exp(value if np.ndim(params) == 2 else value[0])


def _columns(rows: Array) -> tuple[Array, ...]:
    """The columns of (rows, p), each (rows, 1)."""
    return tuple(rows[:, j : j + 1] for j in range(rows.shape[1]))


def _stack(*columns: Array) -> Array:
    return np.stack(np.broadcast_arrays(*columns), axis=1)


def _grid(*axes: tuple[float, ...]) -> tuple[Array, ...]:
    return tuple(np.array(column) for column in zip(*product(*axes), strict=True))


def _compute_exponents(alpha: Array, beta: Array) -> dict[str, Array]:
    """N* ~ C^a, D* ~ C^b if C = 6 N D (Hoffmann et al. 2022, eq. 4); other FLOPs need the exact optimum."""
    return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}


@dataclass(frozen=True, kw_only=True)
class PowerSum(Law):
    """A sum of power laws. params = (amplitudes, exponents); theta has log amplitudes at the centre."""

    name: str
    formula: str
    summands: Mapping[str, Mapping[str, str]]
    """Amplitude -> {input: exponent}; `-alpha` means the power is minus alpha."""
    inputs: tuple[str, ...]
    start_slopes: tuple[float, ...] = (0.1, 0.3, 0.6, 1.2)
    """Every exponent starts at each of these; published alpha and beta lie between .05 and .8."""
    start_shares: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Shares of the last summand in the response; the others halve the rest."""

    @cached_property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        powers = (power.lstrip("-") for inputs in self.summands.values() for power in inputs.values())
        return (*self.summands, *dict.fromkeys(powers))

    @property
    def focus(self) -> str:
        rates = [self.exponents.get(column) for column in "ND"]
        return "a" if None not in rates and rates[0] != rates[1] else self.params[-1]

    @property
    def amplitudes(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(len(self.summands)))

    @cached_property
    def exponents(self) -> Mapping[str, str]:  # type: ignore[override]
        powers = (item for inputs in self.summands.values() for item in inputs.items())
        return {column: power.lstrip("-") for column, power in powers if power.startswith("-")}

    @cached_property
    def _powers(self) -> tuple[tuple[tuple[int, int, float], ...], ...]:
        """For each summand its (theta index, input index, sign) triples."""

        def triple(column: str, power: str) -> tuple[int, int, float]:
            sign = -1.0 if power.startswith("-") else 1.0
            return self.params.index(power.lstrip("-")), self.inputs.index(column), sign

        return tuple(tuple(triple(*item) for item in inputs.items()) for inputs in self.summands.values())

    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        columns = _columns(theta)
        terms = []
        for k, powers in enumerate(self._powers):
            slopes: dict[int, Array | float] = {k: 1.0} | {j: sign * x[i] for j, i, sign in powers}
            value = columns[k] + sum(sign * columns[j] * x[i] for j, i, sign in powers)
            terms.append(Term(value, slopes))
        return tuple(terms)

    def _shift(self, exponents: Array, center: Array) -> Array:
        """What centring adds to each log amplitude (rows, summands)."""
        shifts = [sum(sign * exponents[:, j] * center[i] for j, i, sign in powers) for powers in self._powers]
        return _stack(*(np.broadcast_to(shift, len(exponents)) for shift in shifts))

    @_converts
    def to_public(self, theta: Array, center: Array) -> Array:
        K = len(self.summands)
        return np.hstack([np.exp(theta[:, :K] - self._shift(theta, center)), theta[:, K:]])

    @_converts
    def from_public(self, params: Array, center: Array) -> Array:
        K = len(self.summands)
        return np.hstack([np.log(params[:, :K]) + self._shift(params, center), params[:, K:]])

    def starts(self, level: float) -> Array:
        K = len(self.summands)
        shares = self.start_shares if K > 1 else (1.0,)
        share, *slopes = _grid(shares, *[self.start_slopes] * (len(self.params) - K))
        rest = [level + np.log((1 - share) / (K - 1))] * (K - 1) if K > 1 else []
        return _stack(*rest, level + np.log(share), *slopes)

    def derived(self, params: Array) -> dict[str, Array]:
        if not {"N", "D"} <= self.exponents.keys():
            return {}
        alpha, beta = (params[:, self.params.index(self.exponents[column])] for column in "ND")
        return _compute_exponents(alpha, beta)


class OverTraining(Law):
    """Gadre et al. 2024, eq. 4: the tied law read over compute C = 6 N D and token ratio M = D/N.

    In (C, M) it is L = E + (a M^eta + b_M M^-eta) C^-eta with eta = -b/2, a = alpha' 6^eta and b_M = beta':
    `derived` returns eta, a_CM and b_CM, `predict_at` evaluates there.
    """

    name = "over-training"
    formula = "L = E + alpha' N^b + beta' 6^(b/2) D^b"
    inputs = ("N", "D")
    params = ("alpha'", "beta'", "E", "b")
    amplitudes = (0, 1, 2)

    def __init__(self, tied: PowerSum) -> None:
        self._tied = tied

    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        return self._tied.terms(theta, x)

    @_converts
    def to_public(self, theta: Array, center: Array) -> Array:
        A, B, E, alpha = self._tied.to_public(theta, center).T
        return _stack(A, B * 6.0 ** (alpha / 2), E, -alpha)

    @_converts
    def from_public(self, params: Array, center: Array) -> Array:
        first, second, E, b = params.T
        return self._tied.from_public(_stack(first, second * 6.0 ** (b / 2), E, -b), center)

    def starts(self, level: float) -> Array:
        return self._tied.starts(level)

    def derived(self, params: Array) -> dict[str, Array]:
        first, second, _, b = params.T
        return {"eta": -b / 2, "a_CM": first * 6.0 ** (-b / 2), "b_CM": second}

    def predict_at(self, params: Array | Mapping[str, float], C: Array, M: Array) -> Array:
        """The law over training FLOPs C = 6 N D and tokens a parameter M."""
        N = np.sqrt(np.asarray(C, float) / (6.0 * np.asarray(M, float)))
        return self.predict(params, N=N, D=M * N)


def _power_sum(u: Array, v: Array, gamma: Array) -> tuple[Array, Array, Array, Array]:
    """t = gamma ln(exp(u/gamma) + exp(v/gamma)), its slopes in u and v, and its slope in ln gamma.

    The last is gamma times the entropy of the two shares: it vanishes where one term rules.
    """
    u, v = u / gamma, v / gamma
    total = np.logaddexp(u, v)
    share_v = np.exp(v - total)
    return gamma * total, 1.0 - share_v, share_v, gamma * (total - u - share_v * (v - u))


class Gamma(Law):
    """Six parameters (Busbridge et al. 2025, arXiv:2502.08606): theta = (a, b, e, alpha', beta', ln gamma).

    Inside, the reducible loss is a power sum of exp(a - alpha' n) and exp(b - beta' d), so that alpha' =
    gamma alpha and beta' = gamma beta are the slopes one sees, and gamma only bends the corner between them.
    """

    name = "gamma"
    formula = "L = E + (A N^-alpha + B D^-beta)^gamma"
    inputs = ("N", "D")
    params = ("A", "B", "E", "alpha", "beta", "gamma")
    exponents: Mapping[str, str] = {"N": "alpha", "D": "beta"}
    focus = "a"

    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        a, b, e, alpha, beta, g = _columns(theta)
        n, d = x
        value, by_u, by_v, by_g = _power_sum(a - alpha * n, b - beta * d, np.exp(g))
        reducible = Term(value, {0: by_u, 1: by_v, 3: -n * by_u, 4: -d * by_v, 5: by_g})
        return reducible, Term(e, {2: 1.0})

    @_converts
    def to_public(self, theta: Array, center: Array) -> Array:
        a, b, e, alpha, beta, g = theta.T
        gamma = np.exp(g)
        A, B = np.exp((a + alpha * center[0]) / gamma), np.exp((b + beta * center[1]) / gamma)
        return _stack(A, B, np.exp(e), alpha / gamma, beta / gamma, gamma)

    @_converts
    def from_public(self, params: Array, center: Array) -> Array:
        A, B, E, alpha, beta, gamma = params.T
        a, b = gamma * (np.log(A) - alpha * center[0]), gamma * (np.log(B) - beta * center[1])
        return _stack(a, b, np.log(E), gamma * alpha, gamma * beta, np.log(gamma))

    def starts(self, level: float) -> Array:
        slopes = (0.15, 0.4, 0.9)
        share, alpha, beta, gamma = _grid((0.5, 0.85), slopes, slopes, (0.5, 1.0))
        half = level + np.log(1 - share) - gamma * np.log(2.0)
        return _stack(half, half, level + np.log(share), alpha, beta, np.log(gamma))

    def derived(self, params: Array) -> dict[str, Array]:
        return _compute_exponents(params[:, 3], params[:, 4])


class Kaplan(Law):
    """Kaplan et al. 2020, eq. 1.5, plus E: the gamma law with beta = 1. theta = (a, b, e, k', ln gamma)."""

    name = "kaplan"
    formula = "L = E + (A N^-k + B / D)^gamma"
    inputs = ("N", "D")
    params = ("A", "B", "E", "k", "gamma")
    exponents: Mapping[str, str] = {"N": "k"}
    focus = "a"

    def terms(self, theta: Array, x: Array) -> tuple[Term, ...]:
        a, b, e, alpha, g = _columns(theta)
        n, d = x
        gamma = np.exp(g)
        value, by_u, by_v, by_g = _power_sum(a - alpha * n, b - gamma * d, gamma)
        reducible = Term(value, {0: by_u, 1: by_v, 3: -n * by_u, 4: by_g - gamma * d * by_v})
        return reducible, Term(e, {2: 1.0})

    @_converts
    def to_public(self, theta: Array, center: Array) -> Array:
        a, b, e, alpha, g = theta.T
        gamma = np.exp(g)
        A, B = np.exp((a + alpha * center[0]) / gamma), np.exp(b / gamma + center[1])
        return _stack(A, B, np.exp(e), alpha / gamma, gamma)

    @_converts
    def from_public(self, params: Array, center: Array) -> Array:
        A, B, E, k, gamma = params.T
        a, b = gamma * (np.log(A) - k * center[0]), gamma * (np.log(B) - center[1])
        return _stack(a, b, np.log(E), gamma * k, np.log(gamma))

    def starts(self, level: float) -> Array:
        share, alpha, gamma = _grid((0.3, 0.6, 0.85), (0.1, 0.3, 0.6, 1.2), (0.1, 0.3, 0.6))
        half = level + np.log(1 - share) - gamma * np.log(2.0)
        return _stack(half, half, level + np.log(share), alpha, np.log(gamma))

    def derived(self, params: Array) -> dict[str, Array]:
        return _compute_exponents(params[:, 3], np.ones(len(params)))


_TIED = PowerSum(
    name="tied",
    formula="L = E + A N^-alpha + B D^-alpha",
    summands={"A": {"N": "-alpha"}, "B": {"D": "-alpha"}, "E": {}},
    inputs=("N", "D"),
    start_shares=(0.2, 0.4, 0.6, 0.8, 0.9, 0.95),
)

_ALL: tuple[Law, ...] = (
    PowerSum(  # Hoffmann et al. 2022, eq. 2
        name="chinchilla",
        formula="L = E + A N^-alpha + B D^-beta",
        summands={"A": {"N": "-alpha"}, "B": {"D": "-beta"}, "E": {}},
        inputs=("N", "D"),
    ),
    _TIED,
    PowerSum(  # the null hypothesis of E
        name="no-E",
        formula="L = A N^-alpha + B D^-beta",
        summands={"A": {"N": "-alpha"}, "B": {"D": "-beta"}},
        inputs=("N", "D"),
        start_shares=(0.1, 0.5, 0.9),
    ),
    Gamma(),
    Kaplan(),
    OverTraining(_TIED),
    PowerSum(  # the loss along the optimum
        name="optimal-loss",
        formula="L = L_inf + A C^-alpha",
        summands={"A": {"C": "-alpha"}, "L_inf": {}},
        inputs=("C",),
        start_slopes=(0.03, 0.08, 0.2, 0.5, 1.0),
        start_shares=(0.1, 0.3, 0.5, 0.7, 0.85, 0.95),
    ),
    # N* or D* against compute and context. At one C it is the published x* = A' T^c (arXiv:2510.02228, fit of
    # N* and D* over T at fixed C, where c hardly moves with C); one c for all C is the least that joins them.
    PowerSum(
        name="context",
        formula="x* = A C^k T^c",
        summands={"A": {"C": "k", "T": "c"}},
        inputs=("C", "T"),
        start_slopes=(-0.3, 0.0, 0.5),
    ),
    PowerSum(
        name="context-slice",
        formula="x* = A T^c",
        summands={"A": {"T": "c"}},
        inputs=("T",),
        start_slopes=(-0.5, -0.2, 0.0, 0.2, 0.5),
    ),
)

LAWS: dict[str, Law] = {law.name: law for law in _ALL}
"""Every law by its name."""
