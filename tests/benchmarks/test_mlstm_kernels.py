"""The harness: what it plans, what it survives, what it concludes. Small runs in real worker processes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mlstm_cases as cases
from benchmarks import mlstm_decode as decode
from benchmarks import mlstm_kernels as harness
from benchmarks import mlstm_measure as measure
from benchmarks import mlstm_report as report
from benchmarks.mlstm_report import markdown
from benchmarks.mlstm_targets import targets

CPU = torch.device("cpu")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")


def speed(contender: str, shape: str, forward: float, both: float, peak: float = 5e9) -> dict[str, Any]:
    found = next(s for s in cases.SHAPES if s.name == shape)
    return {
        "kind": "speed", "contender": contender, "shape": dataclasses.asdict(found),
        "ms_forward": forward, "ms_forward_backward": both, "ms_backward": both - forward,
        "peak_bytes": peak,
    }  # fmt: skip


def errors(contender: str, worst: float, shape: cases.Shape = cases.ACCURACY) -> dict[str, Any]:
    return {
        "kind": "errors", "contender": contender, "shape": dataclasses.asdict(shape),
        "errors": dict.fromkeys(("h", *cases.INPUTS), worst / 2) | {"df": worst},
    }  # fmt: skip


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"device": "GPU", "cuda": "13", "cudnn": 9, "versions": {"torch": "2"}, "date": "2026-01-01"}
    return about | {"command": "test", "rows": rows}


@pytest.mark.parametrize(
    ("shape", "forward", "both"),
    [("16h-128/256-S8192", 0.54, 1.43), ("8h-256/512-S8192", 0.54, 1.43), ("4h-64/128-S8192", 0.07, 0.18)],
)
def test_compulsory_bytes_at_3_tb_per_s(shape: str, forward: float, both: float) -> None:
    """The floors in milliseconds; they leave out the gates, one per cent."""
    found = next(s for s in cases.SHAPES if s.name == shape)
    ms = cases.forward_bytes(found) / 3e9
    assert ms == pytest.approx(forward, rel=0.04)
    assert ms + cases.backward_bytes(found) / 3e9 == pytest.approx(both, rel=0.04)


def test_every_shape_has_65536_tokens() -> None:
    assert {shape.batch * shape.length for shape in cases.SHAPES} == {65536}


def test_the_same_inputs_for_everyone() -> None:
    first, again = (cases.random_inputs(cases.QUICK_ACCURACY, CPU, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [x.dtype for x in first[:5]] == [torch.bfloat16] * 3 + [torch.float32] * 2


@pytest.mark.parametrize("name", ["reference", "ours", "ours-detached", "ours-fp32"])
def test_errors_are_those_of_the_dtype(name: str) -> None:
    contender = cases.CONTENDERS[name]
    found = measure.measure_errors(contender, cases.QUICK_ACCURACY, CPU)["errors"]
    low, high = (1e-8, 1e-5) if contender.dtype == torch.float32 else (1e-8, 1e-2)
    assert all(low < found[name] < high for name in ("h", *cases.INPUTS))


def test_errors_see_a_wrong_gradient() -> None:
    """The detached normaliser is another function of q: measured against the exact one, it is far off."""
    detached = cases.CONTENDERS["ours-detached"]
    wrong = dataclasses.replace(detached, cell="mlstm")
    found = measure.measure_errors(wrong, cases.QUICK_ACCURACY, CPU)["errors"]
    assert found["dq"] > 0.1
    assert found["dv"] < 1e-2


def test_a_refused_backward_pass_keeps_the_forward_time() -> None:
    class Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError("not on this device\nmore")

    def build(shape: cases.Shape, device: torch.device, dtype: torch.dtype) -> cases.Problem:
        x = torch.ones(3, requires_grad=True)
        return cases.Problem(
            forward=lambda: Refuse.apply(x), leaves=[x], dh=torch.ones(3), to_tokens_first=lambda y: y
        )

    contender = cases.Contender(name="x", label="x", cell="other", build=build)
    row = measure.measure_speed(contender, cases.QUICK_ACCURACY, CPU, 0.0)
    assert row["ms_forward"] > 0
    assert row["backward_error"] == "RuntimeError: not on this device"


def test_decode_rotation_never_reads_what_was_just_written() -> None:
    states = [(torch.full((1,), float(n)),) * 3 for n in range(6)]
    assert [int(decode._other(states, n)[0]) for n in range(6)] == [3, 4, 5, 0, 1, 2]  # type: ignore[arg-type]


def test_plan_covers_the_whole_table() -> None:
    options = harness.parse(["--quick"])
    options.quick, options.device = False, "cuda"
    requests = harness.plan(options)
    speeds = {(r["contender"], r["shape"]["name"]) for r in requests if r["kind"] == "speed"}
    mlstms = [c.name for c in cases.CONTENDERS.values() if c.timed and c.cell != "other"]
    assert {(c, s.name) for c in mlstms for s in cases.SHAPES if cases.CONTENDERS[c].takes(s)} <= speeds
    assert {s for c, s in speeds if c == "ours"} == {s.name for s in cases.SHAPES}
    assert {s for c, s in speeds if c == "ours-recorded"} == {"4h-64/128-S8192"}
    assert ("cudnn", "16h-128/256-S65536") in speeds
    assert ("cudnn", "4h-64/128-S8192") not in speeds
    steps = {(r["contender"], r["batch"]) for r in requests if r["kind"] == "decode"}
    assert {(c, b) for c in ("step", "step-bf16", "step-peer") for b in (1, 8, 64)} <= steps
    options.only, options.shapes = ["speed"], ["S2048"]
    assert {r["shape"]["name"] for r in harness.plan(options)} == {"16h-128/256-S2048"}


@on_cpu
def test_without_a_gpu_only_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.parse([])
    assert "--quick" in capsys.readouterr().err


def test_unknown_contender_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.parse(["--quick", "--only", "xlchunk"])
    assert "xlchunk" in capsys.readouterr().err


@on_cpu
def test_quick_run_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "out" / "r.json", tmp_path / "out" / "r.md"]
    harness.main(
        ["--quick", "--only", "reference", "--budget", "0", "--json", str(files[0]), "--out", str(files[1])]
    )
    rows = json.loads(files[0].read_text())["rows"]
    assert [row["kind"] for row in rows] == ["speed", "speed", "errors", "errors"]
    assert all(row["ms_forward_backward"] > 0 for row in rows[:2])
    assert files[1].read_text() in capsys.readouterr().out


@on_cpu
def test_a_contender_that_aborts_loses_its_row_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker is told to take a contender whose process dies: the next request starts a new one."""
    worker = harness.Worker("cpu")
    start = harness.Worker._start
    monkeypatch.setattr(harness.Worker, "_start", lambda self: _start(self, "import os; input(); os.abort()"))
    assert "killed by signal 6" in worker.ask({"kind": "speed", "contender": "x"}, 60)["error"]
    monkeypatch.setattr(harness.Worker, "_start", start)
    answer = worker.ask({"kind": "bandwidth", "contender": "copy", "size": 4096}, 100)
    worker.close()
    assert answer["bytes_per_s"] > 0


@on_cpu
def test_a_contender_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.Worker, "_start", lambda self: _start(self, "import time; time.sleep(600)"))
    worker = harness.Worker("cpu")
    assert worker.ask({"kind": "speed", "contender": "x"}, 0.5)["error"].startswith("no answer")
    assert worker._process is None


def _start(worker: harness.Worker, program: str) -> Any:
    import subprocess
    import sys

    worker._process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return worker._process


@on_cpu
def test_what_the_time_limit_cuts_off_says_so_and_what_hangs_is_another_thing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness.Worker, "_start", lambda self: _start(self, "import time; time.sleep(600)"))
    rows = []
    for limit, answer_s in (("0", 120), ("0.5", 120), ("60", 0.5)):
        monkeypatch.setattr(harness, "ANSWER_S", answer_s)
        run = harness.Run(harness.parse(["--quick", "--time-limit", limit]))
        run.measure({"kind": "bandwidth", "contender": "copy", "size": 1})
        run.close()
        rows += run.rows
    assert rows[0]["error"] == "not run: time limit"
    assert rows[1]["error"].endswith("the time limit left")
    assert report.measured(result(rows))["rows"] == [rows[2]]


def verdict(rows: list[dict[str, Any]], start: str, goal: str = "") -> Any:
    found = [v for v in targets(rows, 4e12) if v.target.startswith(start) and goal in v.goal]
    assert len(found) == 1, found
    return found[0]


def test_targets_compare_with_the_best_correct_peer() -> None:
    shape = "16h-128/256-S8192"
    rows = [
        speed("ours", shape, 1.0, 4.0),
        speed("xl-chunk", shape, 3.0, 12.0),
        speed("limit-chunk", shape, 1.1, 4.1),
        errors("xl-chunk", 2.5e-2),
        errors("limit-chunk", 0.2),  # fast and wrong
    ]
    forward = verdict(rows, f"forward, {shape}", "fastest")
    assert forward.met
    assert forward.measured.startswith("3.00x (xl-chunk")
    assert "none of its errors at S = 1,024 reaches\n0.05" in markdown(result(rows))
    assert verdict(rows, f"forward + backward, {shape}", "at most 4.5").met
    rows[0] = speed("ours", shape, 1.3, 5.5)
    assert not verdict(rows, f"forward, {shape}", "fastest").met
    assert not verdict(rows, f"forward + backward, {shape}", "at most 4.5").met


def test_targets_for_long_sequences_memory_and_errors() -> None:
    rows = [
        speed("ours", "16h-128/256-S8192", 1.0, 4.0, peak=6e9),
        speed("ours", "16h-128/256-S65536", 1.2, 5.4),
        speed("xl-chunk", "16h-128/256-S8192", 3.0, 12.0, peak=5e9),
        errors("xl-chunk", 1e-2),
        errors("ours", float("nan")),
        errors("ours-fp32", 9e-6),
        errors("ours", 9e-3, cases.ACCURACY_LONG),
    ]
    assert verdict(rows, "forward, S = 65536").met
    assert not verdict(rows, "forward + backward, S = 65536").met
    assert not verdict(rows, "peak memory").met
    assert not verdict(rows, "worst output, bfloat16, S = 1024").met
    assert verdict(rows, "worst output, bfloat16, S = 16384").met
    assert verdict(rows, "worst output, float32").met


def test_targets_of_the_decode_step() -> None:
    rows = [
        {"kind": "decode", "contender": "step", "batch": batch, "us": us}
        for batch, us in ((1, 4.9), (8, 17.0), (64, 160.0))
    ]
    assert decode.step_bytes(1, torch.float32) == pytest.approx(8.4e6, rel=0.01)
    assert [v.met for v in targets(rows, 4.2e12)] == [True, True, False]


def test_markdown_shows_failures_and_every_table() -> None:
    shape = "16h-128/256-S2048"
    crashed = {key: value for key, value in speed("xl-chunk", shape, 1, 2).items() if "_" not in key}
    rows = [
        {"kind": "bandwidth", "contender": "copy", "bytes_per_s": 4e12},
        speed("ours", shape, 1.0, 4.0),
        crashed | {"error": "process killed by signal 6: a | b"},
        errors("ours", 5e-3),
        {"kind": "decode", "contender": "step", "batch": 8, "us": 17.0},
    ]
    text = markdown(result(rows))
    assert "| **ours** | 1.000 | 4.000 | 3.000 |" in text
    assert r"process killed by signal 6: a \| b" in text
    assert "| **ours** | float32 | 8 | 17.00 |" in text
    assert "5.0e-03" in text
    assert "## Targets" in text


def test_a_page_of_two_runs(tmp_path: Path) -> None:
    shape = "4h-64/128-S8192"
    copy = {"kind": "bandwidth", "contender": "copy", "bytes_per_s": 4e12}
    missing = speed("simple-gla", shape, 1, 2) | {"error": "ModuleNotFoundError: No module named 'fla'"}
    crashed = speed("limit-chunk", shape, 1, 2) | {"error": "process killed by signal 6: x"}
    accurate = {"kind": "decode-errors", "contender": "step", "errors": {"h": 1.7e-3, "C": 4.3e-8}}
    step = {"kind": "decode", "contender": "step", "batch": 1, "us": 4.5}
    first = result([copy, speed("ours", shape, 0.5, 1.5), missing, crashed, step, accurate])
    late = errors("ours", 0.1) | {"error": "not run: time limit"}
    second = result([copy, speed("ours-recorded", shape, 0.24, 0.75), late])
    for name, content in (("first.json", first), ("second.json", second)):
        (tmp_path / name).write_text(json.dumps(content))
    page = [str(tmp_path / name) for name in ("page.json", "page.md")]
    report.main([
        str(tmp_path / "first.json"), "--again", str(tmp_path / "second.json"), "--note", "At revision x.",
        "--again-note", "A day later.", "--json", page[0], "--markdown", page[1],
    ])  # fmt: skip
    text = Path(page[1]).read_text()
    assert text == markdown(json.loads(Path(page[0]).read_text()))
    before, after = text.split("# Measured again")
    assert "At revision x." in before
    assert "A day later." in after
    assert "fla" not in text
    assert "killed by signal 6" in before
    assert "float32 state: h 1.7e-03, C 4.3e-08" in before
    assert f"| forward, {shape} | at most 0.25 ms | 0.500 ms | **no** |" in before
    assert f"| forward, {shape}, in a CUDA graph | at most 0.25 ms | 0.240 ms | yes |" in after
    assert "Errors against float64" not in after
