"""Engines that start while the flow still imports what it needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import psutil

from tasks.engines import Place, launched_ahead
from tasks.launcher import Launcher
from tasks.training import Room
from tests.tasks.test_launcher import FAKE, alive


def test_an_engine_that_is_wanted_starts_ahead_and_is_the_one_that_trains() -> None:
    here = Place(launch=Launcher, room=cast(Room, None), at_once=1, is_here=True)
    before = set(psutil.Process().children())
    with launched_ahead(here, wanted=False) as launch:
        assert launch is Launcher
        assert set(psutil.Process().children()) == before
    with launched_ahead(here, wanted=True) as launch:
        (zygote,) = set(psutil.Process().children()) - before
        with launch() as launcher:
            assert isinstance(launcher, Launcher)
            assert launcher._zygote is not None
            assert launcher._zygote._process.pid == zygote.pid
        assert not alive(zygote.pid)  # with whoever trained
    with launched_ahead(here, wanted=True):
        (zygote,) = set(psutil.Process().children()) - before
    assert not alive(zygote.pid)  # though nobody trained


def test_trainings_that_share_a_gpu_start_ahead_in_its_service() -> None:
    """The service begins first and ends last, however the engine was left."""
    said: list[str] = []

    @contextmanager
    def beside_each_other() -> Iterator[Launcher]:
        said.append("service")
        try:
            with Launcher(FAKE) as launcher:
                yield launcher
                said.append("left")
        finally:
            said.append("service ended")

    here = Place(launch=beside_each_other, room=cast(Room, None), at_once=8, is_here=True)
    with launched_ahead(here, wanted=True) as launch:
        assert said == ["service"]
        with launch() as launcher:
            assert isinstance(launcher, Launcher)
        assert said == ["service", "left", "service ended"]
    assert len(said) == 3
