"""Results as Markdown: accuracies by level, losses by domain and position, claims with their verdicts."""

from collections.abc import Sequence

from sweeps.capability.claims import Claim, domain_names, gap_beyond
from sweeps.capability.results import Interval, Results, interval
from sweeps.capability.spec import Experiment, TextSource
from xlstm.capability.task import Task


def level_table(experiment: Experiment, results: Results) -> str:
    """Mean accuracy with its interval, a row an architecture, a column a level."""
    task = experiment.task
    assert isinstance(task, Task)
    head = ["", "N", "lr", "seeds", *(_level_title(task, level) for level in task.measured)]
    rows = []
    for arch in results.archs(experiment.name):
        found = [results.mean(experiment.name, arch, f"accuracy/{level}") for level in task.measured]
        rows.append([*_named(experiment, results, arch), *(spanned(value, 2) for value in found)])
    rows.append(["chance", "", "", "", *(f"{task.chance(level):.2f}" for level in task.measured)])
    return markdown(head, rows)


def text_table(experiment: Experiment, results: Results) -> str:
    """Mean loss by domain in nats a byte, and the rise of the loss beyond the trained length."""
    assert isinstance(experiment.task, TextSource)
    names = domain_names(results, experiment.name)
    head = ["", "N", "lr", "seeds", "all", *names, f"rise beyond {experiment.task.context_length}"]
    rows = []
    for arch in results.archs(experiment.name):
        measures = ["loss", *(f"domain_loss/{name}" for name in names)]
        found = [spanned(results.mean(experiment.name, arch, measure), 3) for measure in measures]
        gap = interval(list(gap_beyond(experiment, results, arch).values()), results.level)
        rows.append([*_named(experiment, results, arch), *found, spanned(gap, 3)])
    return markdown(head, rows)


def claim_table(claims: Sequence[Claim]) -> str:
    """A row a claim."""
    return markdown(
        ["claim", "verdict", "measured"],
        [[claim.text, claim.verdict, _measured(claim)] for claim in claims],
    )


def _measured(claim: Claim) -> str:
    told = [
        f"{c.subject} - {c.other} {c.what} {spanned(c.difference, 3)}: {c.finding}"
        for c in claim.comparisons
        if len(claim.comparisons) <= 8
    ]
    return "; ".join([claim.comment, *told])


def _named(experiment: Experiment, results: Results, arch: str) -> list[str]:
    chosen = results.chosen(experiment.name, arch)
    rate = next(iter(chosen.values())).peak_lr
    return [arch, f"{results.size(experiment.name, arch):,}", f"{rate:g}", str(len(chosen))]


def _level_title(task: Task, level: int) -> str:
    return f"{level}" if level <= task.trained else f"{level} (beyond)"


def spanned(found: Interval, decimals: int) -> str:
    """`0.93 (0.90 to 0.96)`."""
    text = f"{found.value:.{decimals}f}"
    return f"{text} ({found.low:.{decimals}f} to {found.high:.{decimals}f})" if found.is_known else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
