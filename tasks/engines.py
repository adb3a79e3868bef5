"""Where the runs of a sweep train: on this machine, on a Ray cluster or through Slurm, as its spec says."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from sweeps.plan import PlannedRun
from sweeps.resources import Resources
from tasks.cluster import Elsewhere
from tasks.devices import machine, need, runs_at_once, shares_gpus
from tasks.launcher import Launcher
from tasks.leases import Grant, Ledger, ledger_folder
from tasks.mps import shared_gpus
from tasks.state import State
from tasks.training import Engine, Room

CLUSTER_RUNS = 256
"""Runs that are handed to a cluster at once where the spec names no limit."""


Launch = Callable[[], AbstractContextManager[Engine]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs train, who finds room for them there, and how many may be under way."""

    launch: Launch
    room: Room
    at_once: int
    is_here: bool = False
    """On this machine, where to launch begins with seconds of imports."""


class Here:
    """Room on this machine, from the ledger."""

    def __init__(self, ledger: Ledger, resources: Resources) -> None:
        self.ledger = ledger
        self.resources = resources
        self.stopped = ledger.stopped

    def stop(self) -> None:
        """Let waiting threads give up."""
        self.ledger.stop()

    def take(self, run: PlannedRun) -> AbstractContextManager[Grant]:
        """Room for a run; waits until there is."""
        return self.ledger.take(need(run, self.resources, self.ledger.machine))


def place(resources: Resources, state: State) -> Place:
    """Where the runs of a spec train. UserError where the spec asks for what is not there."""
    if resources.cluster is None:
        here = machine()
        room = Here(Ledger(ledger_folder(), here), resources)
        launch = partial(_beside_each_other, state) if shares_gpus(resources, here) else Launcher
        return Place(launch=launch, room=room, at_once=runs_at_once(resources, here), is_here=True)
    there = Elsewhere("cpu" if resources.device == "cpu" else "cuda:0", resources)
    at_once = resources.runs_in_parallel or CLUSTER_RUNS
    if resources.cluster.engine == "ray":
        from tasks.ray_engine import RayEngine

        return Place(launch=lambda: RayEngine(resources, there.stopped), room=there, at_once=at_once)
    from tasks.slurm_engine import SlurmEngine

    folder = state.home / "slurm"
    return Place(launch=lambda: SlurmEngine(resources, folder, there.stopped), room=there, at_once=at_once)


@contextmanager
def _beside_each_other(state: State) -> Iterator[Launcher]:
    """A launcher of trainings that share GPUs through a service of their own."""
    with shared_gpus(state.home / "mps") as environment, Launcher(environment=environment) as launcher:
        yield launcher


@contextmanager
def launched_ahead(there: Place, *, wanted: bool) -> Iterator[Launch]:
    """`there.launch`; of trainings on this machine, where they are `wanted`, one that begins now.

    While its zygote imports torch the flow imports MLflow and reads what is finished: seconds on either core.
    """
    if not (wanted and there.is_here):
        yield there.launch
        return
    with ExitStack() as opened:
        engine = opened.enter_context(there.launch())

        @contextmanager
        def handed_over() -> Iterator[Engine]:
            with opened:  # whoever trains ends it; where nobody did, it ends with this context
                yield engine

        yield handed_over
