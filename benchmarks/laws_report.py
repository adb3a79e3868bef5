"""The tables of a run of `benchmarks.laws`: targets first, then fits, then bootstraps."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.laws_contenders import CONTENDERS

Row = dict[str, Any]
SECONDS, SPEED_UP, EXCESS = 1.5, 60.0, 1e-6
"""What ours must reach: fit and bootstrap together, against the textbook in the same run, every resample."""


def markdown(result: Row) -> str:
    """The page of a run."""
    rows = {row["contender"]: row for row in result["rows"]}
    parts = [
        _header(result),
        _targets(rows, result["resamples"]),
        _fits(result["rows"]),
        _bootstraps(result["rows"], result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(result: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    load = result["load"]
    return f"""# Scaling-law fits, {result["n_points"]} Chinchilla points, {result["resamples"]:,} resamples

{result["date"]}; Python {result["python"]}, {versions}; {result["processor"]}, one core of
{load["cores"]} and one thread for each contender; load average {load["first"]:.1f} at the start,
{load["highest"]:.1f} at most.

Made by `{result["command"]}`. Objective: sum of Huber(1e-3) of the residuals of ln L. Every contender is
a process of its own; imports are not timed. "~" marks an extrapolation, in proportion, from a part of the
starts or of the resamples: the last column says from how many."""


def together(row: Row, clock: str = "wall") -> float | None:
    """Seconds of fit and 4,000 resamples."""
    if "together" in row:
        return float(row["together"][clock])
    if "fit" in row and "bootstrap" in row:
        return float(row["fit"][clock] + row["bootstrap"][clock])
    return None


def _targets(rows: dict[str, Row], resamples: int) -> str:
    ours, textbook = rows.get("ours", {}), rows.get("textbook", {})
    seconds, theirs = together(ours), together(textbook)
    if seconds is None:
        return ""
    walls = ours.get("walls", [seconds])
    middle = walls[len(walls) // 2]
    body = [
        (
            f"fit and {resamples:,} Huber resamples, one core",
            f"at most {SECONDS} s",
            f"{seconds:.2f} s (best of {len(walls)}; median {middle:.2f} s)",
            _verdict(seconds <= SECONDS),
        )
    ]
    if theirs is not None:
        by_cpu = (together(textbook, "cpu") or 0.0) / (together(ours, "cpu") or 1.0)
        body.append(
            (
                "against the textbook in this run",
                f"at least {SPEED_UP:.0f}x",
                f"{theirs / seconds:.0f}x by wall (~{theirs:.0f} s), {by_cpu:.0f}x by CPU seconds",
                _verdict(min(theirs / seconds, by_cpu) >= SPEED_UP),
            )
        )
    sampled = max(ours["sampled_excess"])
    body += [
        (
            f"excess over the minimum polished by scipy, {len(ours['sampled_excess'])} resamples",
            f"at most {EXCESS:g}",
            f"{sampled:.1e}",
            _verdict(sampled <= EXCESS),
        ),
        (
            f"excess over 4 further starts of our solver, all {resamples:,}",
            f"at most {EXCESS:g}",
            f"{ours['restarted_excess']:.1e}; {ours['converged']:.2%} with a scaled gradient below 1e-7",
            _verdict(ours["restarted_excess"] <= EXCESS),
        ),
    ]
    return "## Targets\n\n" + _table(("target", "goal", "measured", "met"), body)


def _fits(rows: Sequence[Row]) -> str:
    known = [row["objective"] for row in rows if "objective" in row]
    if not known:
        return ""
    lowest = min(known)
    body = []
    for row in rows:
        label = CONTENDERS[row["contender"]][0]
        if "error" in row:
            body.append((label, "", "", "", "", "", row["error"]))
            continue
        A, B, E, alpha, beta = row["params"]
        excess = row["objective"] / lowest - 1.0
        fit = row.get("fit")
        body.append(
            (
                label,
                _time(fit) if fit else "",
                f"{row['objective']:.12f}",
                f"{excess:.1e}" if excess > 1e-12 else "0",
                f"{beta / (alpha + beta):.6f}",
                f"{A:.4f}, {B:.4f}, {E:.6f}, {alpha:.6f}, {beta:.6f}",
                _starts(row),
            )
        )
    head = ("", "fit, s", "objective", "excess", "a", "A, B, E, alpha, beta", "")
    return "## One fit\n\n" + _table(head, body)


def _starts(row: Row) -> str:
    if "starts" not in row:
        return ""
    done = row.get("starts_done", row["starts"])
    text = f"{row['starts']:,} starts" + (f", {done:,} of them run" if done != row["starts"] else "")
    if "successes" in row:
        text += f"; {row['successes']:,} say success, {row['within_1e-6']:,} within 1e-6 of the best"
    return text


def _bootstraps(rows: Sequence[Row], result: Row) -> str:
    ours = next((together(row) for row in rows if row["contender"] == "ours"), None)
    body = []
    for row in rows:
        if "error" in row:
            continue
        total, cpu, seconds, note = together(row), together(row, "cpu"), "", ""
        if "bootstrap" in row:
            seconds = _time(row["bootstrap"])
            note = f"from {row['resamples_done']} warm-started resamples" if "resamples_done" in row else ""
        elif total is None:
            total, cpu = (row["fit"][clock] * (result["resamples"] + 1) for clock in ("wall", "cpu"))
            seconds, note = f"~{total:,.0f}", "it has no bootstrap: its fit, looped"
        shown, busy = (f"{x:,.2f}" if x is not None and x < 10 else f"{x:,.0f}" for x in (total, cpu))
        excess = row.get("sampled_excess")
        body.append(
            (
                CONTENDERS[row["contender"]][0],
                seconds,
                f"~{shown}" if note else shown,
                f"~{busy}" if note else busy,
                f"{total / ours:,.1f}x" if ours and total else "",
                f"{max(excess):.1e} ({len(excess)})" if excess else "",
                note,
            )
        )
    head = ("", "resamples, s", "with the fit, s", "CPU s", "of ours", "worst excess (checked)", "")
    return f"## Fit and {result['resamples']:,} resamples\n\n" + _table(head, body)


def _time(seconds: dict[str, float]) -> str:
    value = seconds["wall"]
    mark = "~" if seconds["factor"] != 1 else ""
    return f"{mark}{value:,.3f}" if value < 10 else f"{mark}{value:,.1f}"


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
