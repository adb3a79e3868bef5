"""What a follower sees."""

import io

import pytest
from rich.console import Console

from flows.display import SHOWN, Display, clock, duration, picture
from tasks.progress import RunProgress, Status, SweepProgress, Training


def run(status: Status, **fields: object) -> RunProgress:
    return RunProgress(run_key=status, name=f"run-{status}", estimated_s=10.0, status=status, **fields)


PROGRESS = SweepProgress(
    sweep="tiny",
    flow_run_id="flow",
    slots=1,
    stage="training",
    runs=[
        run("finished", wall_time_s=20.0),
        run("cached"),
        run("failed", error="out of memory"),
        run("running"),
        run("queued"),
    ],
)
TRAINING = Training(name="run-running", step=30, steps=1200, loss=2.3456, tokens_per_s=20_000.0, eta_s=40.0)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_sees_runs_failures_and_the_time_left() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(PROGRESS, [TRAINING], "Running"))
    text = shown(console)
    assert "training: 2 of 5 runs done, 1 of them cached, 1 running, 1 failed" in text
    assert "run-running  30 of 1,200  2.346    20,000  40 s" in text
    assert "failed: run-failed: out of memory" in text
    assert "about 1 min 00 s left, until " in text


def test_two_hundred_runs_are_as_readable_as_twenty() -> None:
    def lines(count: int) -> list[str]:
        statuses: list[Status] = ["finished", "cached", "failed", "running", "queued"]
        runs = [
            RunProgress(
                run_key=f"{k}",
                name=f"run-{k}",
                arch="mlstm",
                budget=[1e17, 3e17, 1e18][3 * k // count],
                estimated_s=10.0,
                status=statuses[5 * k // count],
                attempt=2 if k == 4 * count // 5 - 1 else 1,
                error="killed: by SIGKILL",
            )
            for k in range(count)
        ]
        trainings = [
            Training(name=run.name, step=1, steps=2, loss=None, tokens_per_s=None, eta_s=None)
            for run in runs
            if run.status == "running"
        ]
        progress = SweepProgress(sweep="s", flow_run_id="f", slots=8, stage="training", runs=runs)
        console = Console(file=io.StringIO(), width=120)
        console.print(picture(progress, trainings, "Running"))
        return shown(console).splitlines()

    few, many = lines(20), lines(200)
    assert len(many) <= len(few) + 2 * SHOWN
    assert len(many) < 40
    text = "\n".join(many)
    assert "1e+17 FLOPs" in text
    assert "and 32 more running" in text
    assert "and 32 more failed" in text
    assert "attempt 2: run-159: killed: by SIGKILL" in text


def test_a_file_gets_a_line_an_event_and_no_more() -> None:
    console = Console(file=io.StringIO(), width=40)
    with Display(console) as display:
        display.show(None, [], "Scheduled")
        for _ in range(5):
            display.show(PROGRESS, [TRAINING], "Running")
    assert shown(console).splitlines() == [
        "flow run is scheduled",
        "training: 2 of 5 runs done, 1 of them cached, 1 running, 1 failed;"
        " run-running step 30 of 1200 loss 2.346; about 1 min 00 s left, until " + clock(60),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
