"""The tables of a run: speed by shape, errors, decode step, and what was met of the targets.

    python -m benchmarks.mlstm_report run.json --again later.json --json page.json --markdown page.md

makes a page of what `benchmarks.mlstm_kernels` wrote, without the rows of what was not measured.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import mlstm_cases as cases
from benchmarks.mlstm_decode import DECODE, step_bytes
from benchmarks.mlstm_targets import CORRECT, targets

Row = dict[str, Any]
ERRORS = ("h", *cases.INPUTS)
METHOD = """Medians of many calls by device events; inputs random, the L2 cache flushed before each call,
warm-up excluded; every contender in its own process. bfloat16 inputs, float32 gates. The copies into the
peers' layout are not counted against them."""
SPEED_NOTE = """TFLOP/s of the chunkwise form at chunks of 64, GB/s of the compulsory bytes: the same count
for every mLSTM, whatever it does beside. "Both" is forward and backward."""
ERROR_NOTE = """Relative, in the 2-norm, from the same rounded inputs, each against the gradient that it
means to compute: the peers hold the normaliser constant, ours does not."""
CORRECT_NOTE = f"""A peer counts as correct if none of its errors at S = {cases.ACCURACY.length:,} reaches
{CORRECT}, whatever they are at S = {cases.ACCURACY_LONG.length:,}."""
NOT_MEASURED = ("ModuleNotFoundError", "time limit")
"""What the error of a row says whose contender had no chance. One that crashed or hung stays."""


def markdown(result: Row) -> str:
    """Of a run, and under `again`, where the result has it, of a later one of a part of the cases."""
    parts = [f"# mLSTM kernels on {result['device']}", result.get("note", ""), *_sections(result)]
    if again := result.get("again"):
        parts += ["# Measured again", again.get("note", ""), *_sections(again)]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(result: Row) -> Row:
    """Without the rows of contenders that could not be imported or that the time did not suffice for."""
    kept = [row for row in result["rows"] if not any(part in row.get("error", "") for part in NOT_MEASURED)]
    return result | {"rows": kept}


def _sections(result: Row) -> list[str]:
    rows = result["rows"]
    bandwidth = copy_bandwidth(rows)
    verdicts = targets(rows, bandwidth) if result["device"] != "CPU" else []
    parts = [_header(result, bandwidth)]
    if verdicts:
        table = [(v.target, v.goal, v.measured, "yes" if v.met else "**no**") for v in verdicts]
        parts.append("## Targets\n\n" + _table(("target", "goal", "measured", "met"), table))
        if any("correct" in v.goal for v in verdicts):
            parts.append(CORRECT_NOTE)
    parts += [_speed(shape, rows, bandwidth) for shape in _shapes(rows)]
    return [*parts, _errors(rows), _decode(rows, bandwidth)]


def copy_bandwidth(rows: Iterable[Row]) -> float | None:
    """Bytes a second, read and written."""
    return next((row["bytes_per_s"] for row in rows if "bytes_per_s" in row), None)


def _header(result: Row, bandwidth: float | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    copy = f"; a large copy moves {bandwidth / 1e9:,.0f} GB/s, read and written" if bandwidth else ""
    return f"""{result["date"]}; {versions}; CUDA {result["cuda"]}, cuDNN {result["cudnn"]}{copy}.

Made by {_command(result["command"])}. {METHOD}"""


def _command(text: str) -> str:
    """As code, up to the remark in parentheses that may follow; backticks in it would open spans of their
    own."""
    command, bracket, remark = text.replace("`", " ").partition("(")
    return f"`{command.strip()}`" + (f" ({remark.strip()}" if bracket else "")


def _shapes(rows: Iterable[Row]) -> list[cases.Shape]:
    found = {row["shape"]["name"]: cases.Shape(**row["shape"]) for row in rows if row["kind"] == "speed"}
    return list(found.values())


def _speed(shape: cases.Shape, rows: Iterable[Row], bandwidth: float | None) -> str:
    head = (
        "", "ms forward", "ms forward + backward", "ms backward", "TFLOP/s", "TFLOP/s both", "GB/s",
        "GB/s both", "of copy", "of copy both", "peak GB", "",
    )  # fmt: skip
    body = [
        _speed_cells(row, shape, bandwidth)
        for row in rows
        if row["kind"] == "speed" and row["shape"]["name"] == shape.name
    ]
    heads = f"{shape.heads} heads of {shape.width}/{shape.value_width}"
    title = f"## {heads}, S = {shape.length:,}, B = {shape.batch}"
    return f"{title}\n\n{_table(head, body)}\n\n{SPEED_NOTE}"


def _speed_cells(row: Row, shape: cases.Shape, bandwidth: float | None) -> tuple[str, ...]:
    contender = cases.CONTENDERS[row["contender"]]
    forward, both = row.get("ms_forward"), row.get("ms_forward_backward")
    rates: list[str] = []
    if contender.cell == "other":
        rates = [""] * 6
    else:
        flops = cases.forward_flops(shape)
        size = cases.forward_bytes(shape)
        all_flops, all_size = flops + cases.backward_flops(shape), size + cases.backward_bytes(shape)
        rates = [_rate(flops, forward, 1e12), _rate(all_flops, both, 1e12)]
        rates += [_rate(size, forward, 1e9), _rate(all_size, both, 1e9)]
        rates += [_share(size, forward, bandwidth), _share(all_size, both, bandwidth)]
    peak = row.get("peak_bytes")
    return (
        contender.label, _ms(forward), _ms(both), _ms(row.get("ms_backward")), *rates,
        f"{peak / 1e9:.2f}" if peak else "", row.get("error") or row.get("backward_error") or "",
    )  # fmt: skip


def _errors(rows: Iterable[Row]) -> str:
    measured = [row for row in rows if row["kind"] == "errors"]
    if not measured:
        return ""
    lengths = sorted({row["shape"]["length"] for row in measured})
    shapes = {row["shape"]["length"]: cases.Shape(**row["shape"]) for row in measured}
    parts = ["## Errors against float64"]
    for length in lengths:
        body = []
        for row in (row for row in measured if row["shape"]["length"] == length):
            contender, found = cases.CONTENDERS[row["contender"]], row.get("errors", {})
            values = [f"{found[name]:.1e}" if name in found else "" for name in ERRORS]
            body.append((contender.label, contender.cell, *values, row.get("error", "")))
        shape = shapes[length]
        title = f"S = {length:,}, B = {shape.batch}, {shape.heads} heads of {shape.width}/{shape.value_width}"
        parts.append(f"{title}\n\n{_table(('', 'function', *ERRORS, ''), body)}")
    parts.append(ERROR_NOTE)
    return "\n\n".join(parts)


def _decode(rows: Iterable[Row], bandwidth: float | None) -> str:
    body = []
    for row in (row for row in rows if row["kind"] == "decode"):
        step, us = DECODE[row["contender"]], row.get("us")
        size = step_bytes(row["batch"], step.state_dtype)
        body.append((
            step.label, str(step.state_dtype).removeprefix("torch."), str(row["batch"]),
            f"{us:.2f}" if us else "", _rate(size, us and us * 1e-3, 1e9),
            _share(size, us and us * 1e-3, bandwidth), row.get("error", ""),
        ))  # fmt: skip
    if not body:
        return ""
    head = ("", "state", "B", "us a step", "GB/s", "of copy", "")
    note = "On a GPU from CUDA graphs that walk over more state than the L2 cache holds, launches included."
    return f"## Decode step, 8 heads of 256/512\n\n{_table(head, body)}\n\n{note}{_decode_errors(rows)}"


def _decode_errors(rows: Iterable[Row]) -> str:
    found = [
        f"{str(DECODE[row['contender']].state_dtype).removeprefix('torch.')} state: "
        + ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        for row in rows
        if row["kind"] == "decode-errors" and "errors" in row
    ]
    return f"\nErrors of ours against float64, {'; '.join(found)}." if found else ""


def _table(head: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rate(amount: float, ms: float | None, unit: float) -> str:
    return "" if ms is None else f"{amount / ms * 1e3 / unit:,.0f}"


def _share(size: float, ms: float | None, bandwidth: float | None) -> str:
    return "" if ms is None or bandwidth is None else f"{size / ms * 1e3 / bandwidth:.0%}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the rows of a run")
    parser.add_argument(
        "--again", type=Path, help="those of a later run of a part of it, in a section after it"
    )
    parser.add_argument("--note", default="", help="stands below the title")
    parser.add_argument("--again-note", default="", help="stands above the later run")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, required=True)
    options = parser.parse_args(arguments)
    result = measured(json.loads(options.run.read_text())) | {"note": options.note}
    if options.again:
        later = measured(json.loads(options.again.read_text()))
        result["again"] = later | {"note": options.again_note}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    options.markdown.write_text(markdown(result))


if __name__ == "__main__":
    main()
