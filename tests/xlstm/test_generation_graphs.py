"""Which prefills are captured: no GPU is asked, a capture is a note."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.xlstm.test_generation import SHAPE, lively, tokens
from xlstm.accounting import mlstm_config
from xlstm.generation import MemoryLimitError, Session, graphs
from xlstm.generation.graphs import KEPT, PrefillGraphs
from xlstm.generation.session import _host_bound_tokens
from xlstm.models.decoding import Layout

PLAIN = Layout((0,), (7,), None, None, torch.arange(7))
SMALL = mlstm_config(**SHAPE)
HELD = 1000


class Noted(PrefillGraphs):
    """Captures and replays by their lengths."""

    def __init__(self, most_tokens: int) -> None:
        super().__init__(most_tokens)
        self.captured: list[int] = []
        self.replays: list[int] = []

    def _capture(self, read: Any, tokens: Tensor, layout: Layout) -> Any:
        self.captured.append(tokens.shape[1])
        self.held += HELD
        return _Replay(self.replays, tokens.clone())


class _Replay:
    def __init__(self, notes: list[int], tokens: Tensor) -> None:
        self.tokens, self.graph, self.logits, self._notes = tokens, self, torch.zeros(1), notes

    def replay(self) -> None:
        self._notes.append(int(self.tokens[0, 0]))


def read_all(
    kept: Noted, lengths: list[int], layout: Layout = PLAIN, fits: bool = True
) -> tuple[list[int], list[int]]:
    """Lengths that were captured, and those that were read without a graph."""
    eager: list[int] = []

    def read(tokens: Tensor, layout: Layout) -> Tensor:
        eager.append(tokens.shape[1])
        return torch.zeros(1)

    for number, length in enumerate(lengths):
        before = len(eager)
        kept(read, lambda shape: fits, torch.full((1, length), number), layout)
        assert kept.replayed == (len(eager) == before) == (kept.replays[-1:] == [number])
    return kept.captured, eager


def test_a_length_that_comes_again_is_captured_once() -> None:
    kept = Noted(1000)
    assert read_all(kept, [7, 9, 7, 7, 9, 7]) == ([7, 9], [7, 9])
    assert kept.replays == [2, 3, 4, 5]  # with the tokens of the call, the first one's too


def test_more_lengths_in_turn_than_are_kept_are_not_captured() -> None:
    """Otherwise each of them would be captured each time that it comes, which takes longer than reading."""
    turn = list(range(1, KEPT + 2))
    assert read_all(Noted(1000), turn * 3) == ([], turn * 3)
    turn = turn[:KEPT]
    assert read_all(Noted(1000), turn * 3) == (turn, turn)


@pytest.mark.parametrize(
    ("most", "layout", "fits"),
    [
        (6, PLAIN, True),
        (1000, replace(PLAIN, starts=(3,)), True),
        (1000, replace(PLAIN, rows=torch.zeros(1, dtype=torch.int64)), True),
        (1000, PLAIN, False),
    ],
    ids=["long", "read on", "some sequences", "no memory"],
)
def test_others_are_not_captured(most: int, layout: Layout, fits: bool) -> None:
    assert read_all(Noted(most), [7, 7, 7], layout, fits) == ([], [7, 7, 7])


def test_what_is_forgotten_comes_twice_before_it_is_captured() -> None:
    kept = Noted(1000)
    read_all(kept, [7, 7])
    kept.forget()
    assert kept.held == 0
    assert read_all(kept, [7, 7]) == ([7, 7], [7])


def test_captured_prefills_give_way_to_what_needs_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their memory does not count as free before."""
    session = Session(lively(SMALL), 1, 8)
    session._prefills = kept = Noted(1000)
    read_all(kept, [7, 7])
    needed = session._footprint(8, 50).prefill
    monkeypatch.setattr("xlstm.generation.session.available_bytes", lambda device: needed + HELD)
    monkeypatch.setattr("xlstm.generation.memory.available_bytes", lambda device: needed + HELD)
    session._refuse(8, 50, new_state=False)
    assert kept.held == HELD
    kept.held += 1
    session._refuse(8, 50, new_state=False)
    assert kept.held == 0
    with pytest.raises(MemoryLimitError):
        session._refuse(8, 5000, new_state=False)


def test_a_capture_leaves_room_for_the_longest_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(lively(SMALL), 1, 8)
    session._prefills = kept = Noted(1000)
    session.prefill(tokens(1, 40))
    kept.held = HELD
    room = HELD + session._footprint(8, 20).prefill + session._footprint(8, 40).prefill
    for free, fits in ((room, True), (room - 1, False)):
        monkeypatch.setattr("xlstm.generation.session.available_bytes", lambda device, free=free: free)
        assert session._fits_once_more(torch.Size((1, 20))) == fits


def test_the_limit_is_by_the_work_of_a_block() -> None:
    few, many = (lively(replace(SMALL, num_blocks=count)) for count in (1, 4))
    weights = sum(parameter.numel() for parameter in few.backbone.parameters())
    assert _host_bound_tokens(few) == int(graphs.HOST_BOUND / weights)
    assert _host_bound_tokens(many) == pytest.approx(_host_bound_tokens(few), rel=0.02)
