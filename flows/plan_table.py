"""The dry run: a plan as a table on the terminal."""

from rich.console import Console
from rich.table import Table

from flows.display import clock, duration
from tasks.preparation import PlanView

WIDTH = 130


def print_plan(console: Console, plan: PlanView) -> None:
    """Every run in the order of its training, then what they cost together."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for title in ("N", "D", "C", "off budget", "D/N", "steps", "batch", "peak lr", "about"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(
            row["run_name"],
            short(row["N"]),
            short(row["D"]),
            f"{row['budget']:.3g}",
            f"{row['budget_error']:+.2%}",
            f"{row['token_param_ratio']:.3g}",
            f"{row['steps']:,}",
            f"{row['batch_size']}",
            f"{row['peak_lr']:.2g}",
            duration(row["estimated_s"]),
        )
    if (
        not console.is_terminal
    ):  # a file or a pipe has room; rich would squeeze the columns into 80 characters
        console.width = WIDTH
    console.print(table)
    console.print(
        f"{len(plan.rows)} runs, {_flops(plan)}, about {duration(plan.estimated_s)}"
        f" with {plan.slots} at a time on {plan.device}"
        f"{' at the pace of the finished ones' if plan.measured else ''}, until {clock(plan.estimated_s)};"
        f" {plan.cached} are finished already",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"corpus {plan.corpus}", highlight=False, soft_wrap=True)
    console.print(f"\n{plan.quality}", highlight=False, markup=False, soft_wrap=True)


def _flops(plan: PlanView) -> str:
    """What they cost together; where runs share trunks, what that saves too."""
    if plan.spent_flops == plan.train_flops:
        return f"{plan.train_flops:.3g} FLOPs"
    saved = 1 - plan.spent_flops / plan.train_flops
    return (
        f"{plan.spent_flops:.3g} FLOPs instead of {plan.train_flops:.3g} ({saved:.0%} saved by shared trunks)"
    )


def short(number: float) -> str:
    """Three digits and a unit: `41.3k`, `1.18M`, `2.5G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
