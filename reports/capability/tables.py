"""The tables of a suite: accuracies by level, who wins which domain, models, comparisons, failed runs."""

import statistics

from reports import numbers
from reports.capability.figures import TITLES, kind_of
from reports.cells import Cell, Column, Table, integer, left, number, right
from reports.palette import arch_label, arch_order
from sweeps.capability.claims import Claim, Comparison, domain_names, gap_beyond
from sweeps.capability.results import Interval, Results, interval, paired
from sweeps.capability.spec import CapabilitySpec, Experiment, TextSource
from xlstm.capability.task import Task


def accuracies(experiment: Experiment, results: Results) -> Table:
    """A row an architecture, a column a level and its interval."""
    task = experiment.task
    assert isinstance(task, Task)
    rows = [
        (
            _name(arch),
            integer(results.size(experiment.name, arch)),
            *(
                cell
                for level in task.measured
                for cell in spanned(results.mean(experiment.name, arch, f"accuracy/{level}"), 3)
            ),
        )
        for arch in arch_order(results.archs(experiment.name))
    ]
    chance = (cell for level in task.measured for cell in (_fixed(task.chance(level), 3), Cell("")))
    rows.append((Cell("chance"), Cell(""), *chance))
    what = TITLES[kind_of(task)][1].lower()
    counted = "" if kind_of(task) == "recall" else "; at a level count the answers beyond the one before"
    titles = (f"{level}" if level <= task.trained else f"{level} (beyond)" for level in task.measured)
    return Table(
        key=f"accuracy-{experiment.name}",
        caption=(
            f"{TITLES[kind_of(task)][0]}: accuracy by {what}, trained up to {task.trained}{counted}."
            " Interval over seeds."
        ),
        columns=(
            *left("Architecture"),
            *right("N"),
            *(Column(title=title) for level in titles for title in (level, "interval")),
        ),
        rows=tuple(rows),
    )


def winners(experiment: Experiment, results: Results) -> Table:
    """Domain by domain: the losses, who is first, and by how much over the next."""
    names, archs = domain_names(results, experiment.name), arch_order(results.archs(experiment.name))
    rows = []
    for name in names:
        values = {arch: results.values(experiment.name, arch, f"domain_loss/{name}") for arch in archs}
        means = {arch: statistics.fmean(by_seed.values()) for arch, by_seed in values.items() if by_seed}
        ranked = sorted(means, key=lambda arch: means[arch])
        losses = tuple(_fixed(means.get(arch), 3) for arch in archs)
        rows.append((Cell(name), *losses, *_lead(ranked, values, results.level)))
    return Table(
        key=f"domains-{experiment.name}",
        caption=(
            "Held-out loss by domain, nats per byte, mean over seeds; the first, and its lead over the next"
            " with the lead's interval."
        ),
        columns=(
            *left("Domain"),
            *right(*(arch_label(arch) for arch in archs)),
            *left("First", "before"),
            *right("by", "interval"),
            *left("Resolved"),
        ),
        rows=tuple(rows),
    )


def _lead(ranked: list[str], values: dict[str, dict[int, float]], level: float) -> tuple[Cell, ...]:
    if len(ranked) < 2:
        return (Cell(""),) * 5
    lead = paired(values[ranked[1]], values[ranked[0]], level)
    resolved = lead.is_known and lead.low > 0
    said = Cell("yes") if resolved else Cell("no", mark="bad")
    return (_name(ranked[0]), _name(ranked[1]), *spanned(lead, 4), said)


def rises(experiment: Experiment, results: Results) -> Table:
    """The rise of the loss beyond the trained length."""
    source = experiment.task
    assert isinstance(source, TextSource)
    rows = []
    for arch in arch_order(results.archs(experiment.name)):
        gap = interval(list(gap_beyond(experiment, results, arch).values()), results.level)
        loss = results.mean(experiment.name, arch, "loss")
        size = results.size(experiment.name, arch)
        rows.append((_name(arch), integer(size), *spanned(loss, 3), *spanned(gap, 4)))
    return Table(
        key=f"rise-{experiment.name}",
        caption=(
            f"Held-out loss at the trained length of {source.context_length}, and how much the loss rises"
            f" beyond: mean over positions to {source.times * source.context_length:,} less that over the"
            " second half of the trained length."
        ),
        columns=(*left("Architecture"), *right("N", "Loss", "interval", "Rise", "interval")),
        rows=tuple(rows),
    )


def evidence(claim: Claim) -> Table:
    """The comparisons behind a verdict."""
    return Table(
        key=f"evidence-{claim.key}",
        caption="Mean differences over seeds; positive where the first does better.",
        columns=(*left("", "against", "in"), *right("difference", "interval"), *left("finding")),
        rows=tuple(_compared(c) for c in claim.comparisons),
    )


def _compared(c: Comparison) -> tuple[Cell, ...]:
    finding = Cell(c.finding, mark="" if c.finding == "ahead" else "quiet")
    return (_name(c.subject), _name(c.other), Cell(c.what), *spanned(c.difference, 4), finding)


def models(suite: CapabilitySpec, results: Results) -> Table:
    """What was trained: sizes, chosen learning rates, seeds, steps, time."""
    rows = []
    for experiment in suite.experiments:
        for arch in arch_order(results.archs(experiment.name)):
            runs = list(results.chosen(experiment.name, arch).values())
            tried = experiment.recipe.rates(arch)
            took = [run.wall_time_s for run in runs if run.wall_time_s is not None]
            rows.append(
                (
                    Cell(experiment.name),
                    _name(arch),
                    integer(runs[0].N),
                    integer(runs[0].N_non_embedding),
                    Cell(f"{runs[0].peak_lr:g}", runs[0].peak_lr),
                    Cell(", ".join(f"{rate:g}" for rate in tried) if len(tried) > 1 else ""),
                    integer(len(runs)),
                    integer(runs[0].steps),
                    number(float(runs[0].tokens), numbers.count),
                    number(runs[0].train_flops, numbers.flops),
                    number(statistics.fmean(took) if took else None, numbers.duration),
                )
            )
    return Table(
        key="models",
        caption="Models and trainings; of several learning rates, the best on held-out examples counts.",
        columns=(
            *left("Experiment", "Architecture"),
            *right("N", "without embeddings", "Peak rate"),
            *left("of"),
            *right("Seeds", "Steps", "Tokens", "FLOPs", "Time a run"),
        ),
        rows=tuple(rows),
    )


def failed(results: Results) -> Table:
    """Runs that are not finished, and why."""
    return Table(
        key="failed",
        caption="Runs that are not finished. They are missing from every mean.",
        columns=left("Experiment", "Architecture", "Seed", "Rate", "Status", "Reason"),
        rows=tuple(
            (
                Cell(o.experiment),
                _name(o.arch),
                Cell(str(o.seed)),
                Cell(f"{o.peak_lr:g}"),
                Cell(o.status, mark="bad"),
                Cell(o.error or ""),
            )
            for o in results.outcomes
            if not o.is_finished
        ),
    )


def spanned(found: Interval, decimals: int) -> tuple[Cell, Cell]:
    """The value and, in a cell of its own, its interval."""
    if not found.is_known:
        return _fixed(found.value, decimals), Cell("")
    ends = (numbers.fixed(end, decimals) for end in (found.low, found.high))
    return _fixed(found.value, decimals), Cell(" to ".join(ends), mark="quiet")


def _fixed(value: float | None, decimals: int) -> Cell:
    return number(value, lambda v: numbers.fixed(v, decimals))


def _name(arch: str) -> Cell:
    return Cell(arch_label(arch))
