"""What a run gets: device, GPUs, memory and time; how it trains on them; the cluster that lends them."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from sweeps.fields import Count, Positive, Section


class Cluster(Section):
    """An engine that trains the runs instead of processes of this machine; see docs/orchestration.md."""

    engine: Literal["ray", "slurm"]
    address: str | None = None
    """Of a Ray cluster, as host:6379, or auto for one on this machine; none starts one here for the sweep."""
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    options: dict[str, str | int] = {}
    """Further options of Slurm's sbatch, as {"qos": "long"}."""


class Switches(Section):
    """How a run trains: no switch changes its result beyond rounding, nor its key. See docs/training.md."""

    compile: bool | None = None
    """Compile the blocks; none: runs on a GPU that are long enough for it to pay."""
    cuda_graph: bool | None = None
    """Record a step and replay it; none: runs on a GPU whose steps are short. Never of shards (fsdp), nor
    asked for on a CPU."""
    fused_loss: bool | None = None
    """Head and loss in chunks, without the logits of all tokens; none: on a GPU, or where these are large."""
    checkpoint_blocks: bool = False
    """Compute a block again for its gradient: a third more time, and a fraction of the memory."""
    deterministic: bool = True
    """The same seed gives the same bits on a GPU; without, long contexts of a Transformer train faster."""


class Resources(Section):
    """What one run gets, and a speed guess for the plan's time estimate."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    runs_in_parallel: Count | None = None
    """At most so many at once; none leaves it to the cores, the memory and the GPUs that there are."""
    threads: Count = 1
    """CPU threads of a run, for each of its GPUs."""
    gpus: Positive | Annotated[dict[Positive, Positive], Field(min_length=1)] = 1.0
    """GPUs of a run, where it trains on some. With 0.5, two runs share one; 2 train a run together, on one
    host. By size, as {1e8: 0.25, 1e9: 1, 4e9: 4}: a model takes the entry of the smallest listed N that is at
    least its own, larger ones the last. On a CPU 2 or more are as many processes, over gloo."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """What GPUs that train a run together hold of it: replicas, or shards of its weights and its optimiser;
    auto takes replicas where these fill half of a GPU at most."""
    timeout_s: Positive = 86_400
    hang_after_s: Positive = 600
    """A run that shows no progress for so long is ended, and resumed from its last checkpoint."""
    memory_gib: Positive | None = None
    """A run whose weights, gradients and optimiser state need more is refused before anything trains."""
    flops_per_s: Positive = 4e10
    step_overhead_s: Annotated[float, Field(ge=0)] = 0.005
    checkpoint_every_s: Positive = 60.0
    cluster: Cluster | None = None
    """None: this machine."""
    keep_final_checkpoint: bool = False
    """Log the final weights of every run as an artifact."""
    execution: Switches = Switches()
    mps: bool = True
    """Runs that share a GPU compute beside each other, by NVIDIA's MPS where it is there; else in turns."""

    @field_validator("gpus")
    @classmethod
    def _shares_or_whole(cls, gpus: float | dict[float, float]) -> float | dict[float, float]:
        for value in gpus.values() if isinstance(gpus, dict) else [gpus]:
            if value > 1 and value != int(value):
                raise ValueError(f"{value:g} GPUs: give a share of one, as 0.5, or a whole number")
        return gpus

    @field_validator("execution")
    @classmethod
    def _recorded_on_a_gpu(cls, execution: Switches, info: ValidationInfo) -> Switches:
        if execution.cuda_graph and info.data.get("device") == "cpu":
            raise ValueError(
                "cuda_graph records steps of a GPU, and device = cpu has none; leave it out, or set device to"
                " cuda"
            )
        return execution

    @property
    def gpu_counts(self) -> tuple[float, ...]:
        """What runs take, from the smallest model to the largest."""
        return tuple(self.gpus[n] for n in sorted(self.gpus)) if isinstance(self.gpus, dict) else (self.gpus,)

    def gpus_of(self, N: float) -> float:
        """GPUs, or the share of one, of a model with N parameters."""
        if not isinstance(self.gpus, dict):
            return self.gpus
        listed = sorted(self.gpus)
        return self.gpus[next((n for n in listed if n >= N), listed[-1])]
