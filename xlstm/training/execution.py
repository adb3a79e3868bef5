"""How a training runs, as opposed to what it computes: switches that change no result beyond rounding.

They are no part of the RunSpec, and so of no run key. Light: no torch here.
"""

from dataclasses import dataclass, replace

from xlstm.accounting import training_flops
from xlstm.run_spec import RunSpec

COMPILE_FROM_FLOPS = 2e15
"""A training below it would be over before a compiler pays: half a minute of plain kernels on a fast GPU."""
GRAPH_BELOW_FLOPS = 2e14
"""Of a step, or a process's part of it: above it a fast GPU is busy for half a second or longer, and no host
falls behind. Below, gaps between kernels, and a slow host, cost from a few percent to most of the time."""
FUSE_FROM_BYTES = 2**26
"""On a CPU, logits below this are cheaper to hold than to make in chunks."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Switches of one training. None leaves one to `settled`, by the device and the size of the run."""

    compile: bool | None = None
    """Compile the blocks, all with one graph: one compilation a shape, kept on disk."""
    cuda_graph: bool | None = None
    """Record a whole step, forward and backward, once, and replay it: no time of the host between kernels.
    Of several processes each records its own part; shards, whose weights come and go, are never recorded."""
    fused_loss: bool | None = None
    """Head and cross-entropy in one, chunk by chunk, without the logits of all tokens."""
    checkpoint_blocks: bool = False
    """Keep the input of a block alone and compute it again for its gradient: a third more time for memory."""
    deterministic: bool = True
    """The same seed gives the same bits. Without, attention's gradient takes the fastest kernel there is."""
    prefetch: int | None = None
    """Batches made ready ahead in a thread of their own; 0: made when asked for."""

    def settled(
        self, spec: RunSpec, *, on_gpu: bool, processes: int = 1, sharded: bool = False
    ) -> "Execution":
        """The same with every switch decided for a run of so many processes.

        `sharded`: they hold shards of the weights and not replicas, which overrules a `cuda_graph` of True;
        means nothing for one process.
        """
        total = training_flops(spec.model, spec.context_length, spec.tokens)
        step = total / spec.steps / processes
        recordable = processes == 1 or not sharded
        capable = on_gpu and spec.model.arch in ("mlstm", "transformer")  # no loop over the tokens in Python
        logits = spec.batch_size * spec.context_length * spec.model.vocab_size * 4
        return replace(
            self,
            compile=_else(self.compile, capable and total >= COMPILE_FROM_FLOPS),
            cuda_graph=recordable and _else(self.cuda_graph, capable and step < GRAPH_BELOW_FLOPS),
            fused_loss=_else(self.fused_loss, on_gpu or logits >= FUSE_FROM_BYTES),
            prefetch=(2 if on_gpu else 0) if self.prefetch is None else self.prefetch,
        )


def _else(chosen: bool | None, default: bool) -> bool:
    return default if chosen is None else chosen


PLAIN = Execution(compile=False, cuda_graph=False, fused_loss=False, prefetch=0)
"""As written, on any device."""
