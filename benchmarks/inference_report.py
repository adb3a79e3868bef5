"""The benchmark of inference in Markdown: every row, and whether the targets are met."""

from collections.abc import Iterable
from typing import Any

from benchmarks.inference_profile import profile_table

INDEPENDENT = 0.05
BANDWIDTH_SHARE = 0.90
TTFT_RATIO = 0.5
COLUMNS = (
    "engine",
    "model",
    "prefill",
    "batch",
    "first token (ms)",
    "step (ms)",
    "tokens/s",
    "of the bandwidth",
    "memory (GiB)",
    "first token by",
    "steps by",
)

Row = dict[str, Any]


def report(result: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    limits, rows = result["limits"], result["measurements"]
    copied = limits.get("copy_bytes_per_s")
    lines = [f"Device: {limits.get('device', 'not known')}, {limits.get('versions', {})}"]
    if copied:
        lines.append(
            f"Copy bandwidth, read and written: {copied / 1e12:.2f} TB/s; matrix products:"
            f" {limits['matmul_flops_per_s'] / 1e12:.0f} TFLOP/s (both measured)."
        )
    lines += ["", "## Targets", "", *targets(rows, limits), "", "## Correctness, before any timing", ""]
    for name, checked in result["checks"].items():
        verdict = "passed" if checked["passed"] else "FAILED"
        lines.append(
            f"- {name}: {verdict}, logits of prefill and decode off those of the same weights in float32 by"
            f" {checked['error']:.2g} (relative), of one forward pass by {checked['forward_error']:.2g}; the"
            f" likeliest token of float32 in {100 * checked['argmax_agree']:.0f} % and"
            f" {100 * checked['forward_argmax_agree']:.0f} %"
        )
    lines += ["", "## Rows", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
    lines += [row_line(row, limits) for row in rows]
    if result.get("profiles"):
        lines += ["", "## Where the time goes", "", *(profile_table(row) for row in result["profiles"])]
    if result["notes"]:
        lines += ["", "## Not measured", "", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def row_line(row: Row, limits: dict[str, Any]) -> str:
    """One row of the table."""
    name = f"{row['arch']} {row['model']}"
    head = (row["engine"], name, f"{row['prefill_length']:,}", str(row["batch_size"]))
    if row["status"] != "finished":
        return _line((*head, row["error"].replace("|", "/"), *("" for _ in COLUMNS[5:])))
    step, ttft = row["step_time_s"], row["ttft_s"]
    share = bandwidth_share(row, limits)
    return _line(
        (
            *head,
            "" if ttft is None else f"{1e3 * ttft:.2f}",
            f"{1e3 * step:.3f}",
            f"{row['batch_size'] / step:,.0f}",
            "" if share is None else f"{100 * share:.1f} %",
            f"{row['memory_bytes'] / 2**30:.2f}",
            "" if ttft is None else row.get("prefill", "eager"),
            row["decode"],
        )
    )


def bandwidth_share(row: Row, limits: dict[str, Any]) -> float | None:
    """Time that weights and state would take at the measured copy bandwidth, over the time of the step."""
    copied = limits.get("copy_bytes_per_s")
    return row["step_bytes"] / copied / row["step_time_s"] if copied else None


def targets(rows: list[Row], limits: dict[str, Any]) -> list[str]:
    """What is asked of ours, each with the numbers that decide it."""
    done = [row for row in rows if row["status"] == "finished"]
    ours = [row for row in done if row["engine"] == "ours"]
    found = [*_independence(ours), *_bandwidth(ours, limits), *_first_token(ours), *_peers(done)]
    return found or ["- nothing measured yet"]


def _independence(ours: list[Row]) -> Iterable[str]:
    groups: dict[tuple[str, int], list[float]] = {}
    for row in ours:
        if row["arch"] == "mlstm":
            groups.setdefault((row["model"], row["batch_size"]), []).append(row["step_time_s"])
    spreads = {key: max(times) / min(times) - 1 for key, times in groups.items() if len(times) > 1}
    if spreads:
        (size, batch), worst = max(spreads.items(), key=lambda item: item[1])
        yield (
            f"- step time of the mLSTM independent of the prefill within {100 * INDEPENDENT:.0f} %:"
            f" {_met(worst <= INDEPENDENT)}; the worst of {len(spreads)} models and batches is"
            f" {100 * worst:.1f} % ({size}, batch {batch})"
        )


def _bandwidth(ours: list[Row], limits: dict[str, Any]) -> Iterable[str]:
    for size, batch in (("1.4B", 1), ("1.4B", 64), ("400M", 64), ("160M", 64)):
        shares = [
            share
            for row in ours
            if (row["arch"], row["model"], row["batch_size"]) == ("mlstm", size, batch)
            and (share := bandwidth_share(row, limits)) is not None
        ]
        if shares:
            least, most = min(shares), max(shares)
            yield (
                f"- at least {100 * BANDWIDTH_SHARE:.0f} % of the bandwidth bound, mLSTM {size}, batch"
                f" {batch}: {_met(least >= BANDWIDTH_SHARE)}; {100 * least:.1f} to {100 * most:.1f} %"
            )


def _first_token(ours: list[Row]) -> Iterable[str]:
    times = {
        (row["arch"], row["model"]): row["ttft_s"]
        for row in ours
        if row["prefill_length"] == 16_384 and row["batch_size"] == 1 and row["ttft_s"]
    }
    for size in ("160M", "400M", "1.4B"):
        one, two = times.get(("mlstm", size)), times.get(("transformer", size))
        if one and two:
            yield (
                f"- first token after 16,384 tokens at most half the Transformer's, {size}:"
                f" {_met(one / two <= TTFT_RATIO)}; {1e3 * one:.1f} of {1e3 * two:.1f} ms ({one / two:.2f})"
            )


def _peers(done: list[Row]) -> Iterable[str]:
    """Ours against theirs, the worst and the best of the points that both have."""
    point = ("arch", "model", "prefill_length", "batch_size")
    theirs = {tuple(row[name] for name in point): row for row in done if row["engine"] == "transformers"}
    for arch in ("mlstm", "transformer"):
        for column, what in (("step_time_s", "a step"), ("ttft_s", "the first token")):
            ratios = [
                theirs[key][column] / row[column]
                for row in done
                if row["engine"] == "ours"
                and row["arch"] == arch
                and (key := tuple(row[name] for name in point)) in theirs
                and row[column]
                and theirs[key][column]
            ]
            if ratios:
                yield (
                    f"- {arch}: transformers takes {min(ratios):.2f} to {max(ratios):.2f} times as long for"
                    f" {what}, over {len(ratios)} points"
                )


def _met(met: bool) -> str:
    return "met" if met else "NOT met"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
