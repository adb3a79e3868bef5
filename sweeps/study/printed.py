"""What the paper and its repository print, number by number, with where it stands (PAPER.md, sections 4 and
6).

Gold values for the reproduction table and its tests: numbers of a publication, with the digits that it or its
notebooks show; the long lists lie in printed.json. "transformer" is the authors' llama, "mlstm" their
mlstm_v1. A number that is printed as infinite or not at all is nan.
"""

import json
from importlib.resources import files
from typing import Any, NamedTuple


class PrintedLaw(NamedTuple):
    """x* = A C^exponent through `budgets` optima: optimal_flop_param_token_tables.ipynb, cell 5, from runs of
    which 32 were copies."""

    arch: str
    context_length: int
    quantity: str
    budgets: int
    A: float
    exponent: float
    exponent_std: float


class PrintedOptimum(NamedTuple):
    """Vertices at one budget: N* and L* as published (isoflop_ctx_plots.ipynb, cells 8 and 9); D*, and the
    L* of the parabola in log10 D, as the repository's code gives them (PAPER 6.1)."""

    arch: str
    context_length: int
    budget: float
    runs: int
    N: float
    loss: float
    D: float
    loss_D: float
    N_clean: float
    loss_clean: float
    """N* and L* as the repository's code gives them without the copies (PAPER 6.1)."""


class PrintedTable(NamedTuple):
    """Optimal compute and tokens of a model size by the four-budget laws at context 8192: the same notebook,
    cells 6 and 7."""

    arch: str
    N: float
    C: float
    D: float


class PrintedSlope(NamedTuple):
    """ln L = slope ln C + intercept at D/N = ratio: token_param_ratio_plots--slopes.ipynb, cells 7, 8, 24 to
    27. `stderr` is what the notebook prints under that name, and is the variance."""

    arch: str
    flops: str
    ratio: int
    runs: int
    slope: float
    intercept: float
    stderr: float


class PrintedRuntime(NamedTuple):
    """An inference fit (PAPER 4.7): rate and overhead as published (a resample of seed 0), then by the same
    objective on all rows; each with its mean absolute relative error on all rows."""

    kind: str
    model: str
    rows: int
    rate: float
    overhead: float
    mape: float
    rate_all: float
    overhead_all: float
    mape_all: float


class PrintedFit(NamedTuple):
    """The best stored parametric fit of a cell (PAPER 4.5)."""

    arch: str
    experiment_set: str
    max_ratio: float
    gamma_free: bool
    delta: float
    objective: float
    A: float
    B: float
    E: float
    alpha: float
    beta: float
    gamma: float


class Refit(NamedTuple):
    """An mLSTM cell refitted without the copies, from the published minimum (PAPER 4.5, last table)."""

    experiment_set: str
    delta: float
    gamma_free: bool
    objective: float


def _rows(name: str, kind: Any) -> tuple[Any, ...]:
    return tuple(kind(*(float("nan") if v is None else v for v in row)) for row in _LISTS[name])


_LISTS: dict[str, list[list[Any]]] = json.loads(
    files("sweeps.study").joinpath("printed.json").read_text(encoding="utf-8")
)

POWER_LAWS: tuple[PrintedLaw, ...] = _rows("power_laws", PrintedLaw)
CLEAN_LAWS: tuple[PrintedLaw, ...] = _rows("clean_laws", PrintedLaw)
"""The laws as the repository's method gives them without the copies (PAPER 6.1)."""
OPTIMA: tuple[PrintedOptimum, ...] = _rows("optima", PrintedOptimum)
OPTIMAL_TABLE: tuple[PrintedTable, ...] = _rows("optimal_table", PrintedTable)
SLOPES: tuple[PrintedSlope, ...] = _rows("slopes", PrintedSlope)
RUNTIMES: tuple[PrintedRuntime, ...] = _rows("runtimes", PrintedRuntime)
FITS: tuple[PrintedFit, ...] = _rows("fits", PrintedFit)
REFITS: tuple[Refit, ...] = _rows("refits", Refit)

CONTEXT_EXPONENTS = (
    # arch, quantity, budget, exponent of T over 2048, 8192, 16384: isoflop_ctx_powerlaw.ipynb, cells 6 and 8
    ("transformer", "N", 6e18, -0.162),
    ("transformer", "N", 1e19, -0.146),
    ("transformer", "N", 3e19, -0.145),
    ("mlstm", "N", 6e18, -0.043),
    ("mlstm", "N", 1e19, -0.029),
    ("mlstm", "N", 3e19, -0.035),
    ("transformer", "D", 6e18, -0.148),
    ("transformer", "D", 1e19, -0.165),
    ("transformer", "D", 3e19, -0.145),
    ("mlstm", "D", 6e18, 0.047),
    ("mlstm", "D", 1e19, 0.033),
    ("mlstm", "D", 3e19, 0.037),
)

HULLS = (
    # arch, frontier, exponent of D, exponent of N: convex_hull.ipynb, cell 4, envelope.ipynb, cell 3
    ("mlstm", "hull", 0.519, 0.454),
    ("transformer", "hull", 0.540, 0.473),
    ("mlstm", "envelope", 0.530, 0.447),
    ("transformer", "envelope", 0.515, 0.500),
)

PARETO = (
    # arch, points of the hull, first C, first L, last C, last L: pareto_frontier.ipynb, cell 3
    ("mlstm", 16, 2.80968e18, 3.27811, 8.48091e22, 2.10295),
    ("transformer", 16, 4.41645e18, 3.29849, 2.82489e22, 2.18115),
)

MEASURED = (
    # kind, prefill, milliseconds of the xLSTM 7B and of the llama2 7B, one sequence: PAPER 4.7
    ("ttft", 16384, 530.0, 778.0),
    ("step_time", 16384, 6.2, 28.6),
    ("step_time", 128, 6.1, 6.8),
)

RUNS_WITH_COPIES, RUNS, TRANSFORMER_RUNS, XLSTM_RUNS = 672, 640, 292, 348
"""Runs of the paper's data set, with the 32 copies and without (PAPER, findings 1 and 2)."""

STORED_GOODNESS = (0.18397, -60.57)
"""Mean squared error and R2 stored with the Transformer's token/parameter fit, delta 1e-3, gamma (PAPER
3.1)."""
TRUE_GOODNESS = (1.2475e-4, 0.99865)
"""The same of that fit, computed correctly there."""

STEP_BYTES = 4.41e8
"""Bytes of a step of the llama2 1.4B after 2,048 tokens, one sequence, by the authors' count (PAPER 2.6)."""
