"""What a follower sees."""

import io

import pytest
from rich.console import Console

from flows.display import Display, duration, picture
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
    assert "about 1 min 00 s left" in text


def test_a_file_gets_a_line_an_event_and_no_more() -> None:
    console = Console(file=io.StringIO(), width=40)
    with Display(console) as display:
        display.show(None, [], "Scheduled")
        for _ in range(5):
            display.show(PROGRESS, [TRAINING], "Running")
    assert shown(console).splitlines() == [
        "flow run is scheduled",
        "training: 2 of 5 runs done, 1 of them cached, 1 running, 1 failed;"
        " run-running step 30 of 1200 loss 2.346; about 1 min 00 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
