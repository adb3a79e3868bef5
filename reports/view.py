"""What every part of a report asks of the runs and the analysis: order, labels, budgets, the optimum."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from reports.palette import arch_label, arch_order
from reports.provenance import Provenance
from sweeps.laws.types import Analysis, Comparison, GroupAnalysis, OptimumPrediction
from sweeps.predicted import Outcome
from sweeps.run_models import config_of
from sweeps.run_table import RUN_TABLE_SCHEMA
from xlstm.config import ModelConfig


@dataclass(frozen=True)
class View:
    """The report's reading of a sweep."""

    runs: pl.DataFrame
    """The run table with every column of the schema (null where absent) and a name for each run. Beside them
    `g` and `b`, the places of group and budget (-1 for none), `gap`, (train_flops - budget) / budget, and
    `url`, the run's page in MLflow (null where there is none)."""
    analysis: Analysis
    provenance: Provenance
    curves: pl.DataFrame | None = None
    """Training histories, thinned: `run_key`, `D` (tokens seen), `loss` (nats per token)."""
    predicted: Sequence[Outcome] = ()
    """Hold-out runs."""

    @cached_property
    def archs(self) -> list[str]:
        """Every architecture of the runs and the fits, in the order of the colours."""
        return arch_order(
            [*self.runs["arch"].drop_nulls().to_list(), *(g.arch for g in self.analysis.groups)]
        )

    @cached_property
    def groups(self) -> list[GroupAnalysis]:
        """By context length, then in the order of the colours."""
        return sorted(self.analysis.groups, key=lambda g: (g.context_length, self.archs.index(g.arch)))

    @cached_property
    def contexts(self) -> list[int]:
        return sorted({group.context_length for group in self.groups})

    def at_context(self, context_length: int) -> list[GroupAnalysis]:
        return [group for group in self.groups if group.context_length == context_length]

    @cached_property
    def budgets(self) -> list[float]:
        """Distinct nominal budgets of the parabolas, ascending: one colour each."""
        return distinct(p.budget for group in self.groups for p in group.parabolas)

    @cached_property
    def trained_budgets(self) -> list[float]:
        """Budgets of the grid, or the largest compute of any run where there is no grid."""
        if self.budgets:
            return self.budgets
        largest = self.runs.filter(finished())["train_flops"].max()
        return [float(largest)] if isinstance(largest, float) else []

    @cached_property
    def targets(self) -> list[float]:
        """Budgets at which the user wants the answer, ascending."""
        asked = self.analysis.settings.get("target_budgets")
        return distinct(float(budget) for budget in asked) if isinstance(asked, list | tuple) else []

    @cached_property
    def headline_budgets(self) -> list[float]:
        """Targets and the top of the grid, the largest first: the first is the headline's."""
        predicted = [o.budget for group in self.groups for o in group.optima]
        wanted = distinct([*self.targets, *self.trained_budgets[-1:]]) or distinct(predicted)[-1:]
        return wanted[::-1]

    def trained_sizes(self, group: GroupAnalysis) -> tuple[float, float]:
        """The smallest and the largest N of a group's finished runs."""
        sizes = self.runs.filter(finished() & (pl.col("g") == self.groups.index(group)))["N"]
        return (float(sizes.to_numpy().min()), float(sizes.to_numpy().max())) if len(sizes) else (0.0, np.inf)

    def comparisons(self, context_length: int, budget: float) -> list[Comparison]:
        """Comparisons of the architectures at one context and budget."""
        return [
            c
            for c in self.analysis.comparisons
            if c.context_length == context_length and same(c.budget, budget)
        ]

    @property
    def missed(self) -> list[Outcome]:
        """Hold-out runs that came out outside of what was predicted."""
        return [outcome for outcome in self.predicted if outcome.inside is False]

    def method_label(self, optimum: OptimumPrediction) -> str:
        """A method without its estimator, where that is clear enough: `Chinchilla law`."""
        short = _before_comma(optimum.method)
        methods = {o.method for group in self.groups for o in group.optima}
        text = short if sum(_before_comma(method) == short for method in methods) == 1 else optimum.method
        return text.replace("isoflop", "IsoFLOP").replace("chinchilla", "Chinchilla")

    def at(self, context_length: int) -> str:
        """`, context 512` where there are several context lengths, else nothing."""
        return f", context {context_length}" if len(self.contexts) > 1 else ""

    def label(self, group: GroupAnalysis) -> str:
        """`mLSTM`, or `mLSTM, context 512`."""
        return arch_label(group.arch) + self.at(group.context_length)

    @cached_property
    def models(self) -> list[ModelConfig]:
        """The distinct models of the runs, where their shapes are known."""
        shapes = ["arch", "N", "N_non_embedding", "d_model", "num_blocks", "num_heads"]
        distinct_shapes = self.runs.select(shapes).unique(maintain_order=True)
        configs = (config_of(row) for row in distinct_shapes.iter_rows(named=True))
        return list(dict.fromkeys(config for config in configs if config is not None))

    @property
    def loss_unit(self) -> str:
        """See Provenance."""
        return self.provenance.loss_unit

    @property
    def level(self) -> float:
        """The level of the intervals."""
        level = self.analysis.settings.get("level", 0.95)
        return float(level) if isinstance(level, int | float) else 0.95

    def bits_per_byte(self, loss: float) -> float | None:
        """A loss in nats per token as bits per byte, where the bytes of a token are known."""
        width = self.provenance.bytes_per_token
        return loss / np.log(2) / width if width else None


def make_view(
    runs: pl.DataFrame,
    analysis: Analysis,
    provenance: Provenance,
    curves: pl.DataFrame | None = None,
    predicted: Sequence[Outcome] = (),
) -> View:
    """Completes the run table and numbers its groups and budgets.

    Raises `ValueError` where a column that identifies a run is missing or is not a number.
    """
    for column in ("arch", "context_length", "N", "D", "loss"):
        if column not in runs.columns:
            raise ValueError(f"the run table has no column '{column}', which a report needs")
    missing = [pl.lit(None, dtype=t).alias(n) for n, t in RUN_TABLE_SCHEMA.items() if n not in runs.columns]
    complete = runs.with_columns(missing).cast(RUN_TABLE_SCHEMA)  # type: ignore[arg-type]
    complete = complete.with_row_index("row").with_columns(run_name=_names())
    bare = View(complete, analysis, provenance)
    places: Mapping[tuple[str, int], int] = {(g.arch, g.context_length): i for i, g in enumerate(bare.groups)}
    keys = zip(complete["arch"], complete["context_length"], strict=True)
    spent = complete["train_flops"].fill_null(6 * complete["N"] * complete["D"])
    numbered = complete.with_columns(
        pl.Series("g", [places.get(key, -1) for key in keys], dtype=pl.Int64),
        pl.Series("b", [place(budget, bare.budgets) for budget in complete["budget"]], dtype=pl.Int64),
        spent.alias("train_flops"),
        status=pl.col("status").fill_null("finished"),
        gap=spent / complete["budget"] - 1,
        url=_urls(provenance),
    )
    return View(numbered, analysis, provenance, curves, predicted)


def _names() -> pl.Expr:
    """The run's name, else the start of its key, else its row in the table."""
    return pl.coalesce("run_name", pl.col("run_key").str.slice(0, 12), pl.format("row {}", "row"))


def _urls(provenance: Provenance) -> pl.Expr:
    """Anything but http(s) is not worth a link and might be a script."""
    base = provenance.mlflow_url or ""
    if not base.startswith(("http://", "https://")):
        return pl.lit(None, dtype=pl.String)
    parts = (f"{base.rstrip('/')}/#/experiments/", "mlflow_experiment_id", "/runs/", "mlflow_run_id")
    return pl.concat_str(pl.lit(parts[0]), parts[1], pl.lit(parts[2]), parts[3])


def finished() -> pl.Expr:
    """Rows that a fit may use."""
    return (pl.col("status") == "finished") & pl.col("loss").is_finite()


def best_optimum(group: GroupAnalysis, budget: float) -> OptimumPrediction | None:
    """The prediction that answers at a budget: the fits put the method they trust first."""
    return next((o for o in group.optima if same(o.budget, budget) and np.isfinite(o.N.value)), None)


def _before_comma(text: str) -> str:
    return text.split(",")[0]


def same(a: float | None, b: float) -> bool:
    """One budget, up to the rounding of a file format."""
    return a is not None and bool(np.isclose(a, b, rtol=1e-6, atol=0))


def distinct(values: Iterable[float]) -> list[float]:
    """Ascending, with near-equal neighbours once."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or not same(value, kept[-1]):
            kept.append(value)
    return kept


def place(budget: float | None, budgets: list[float]) -> int:
    """The index of a budget among distinct ones; -1 for none of them."""
    return next((i for i, b in enumerate(budgets) if same(budget, b)), -1)
