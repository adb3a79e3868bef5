"""Lightning's strategies for one run over several devices of a host: replicas (DDP) or shards (FSDP).

FSDP is torch's second, `fully_shard`, through Lightning's ModelParallelStrategy, and not the first, through
its FSDPStrategy: parameters stay single tensors (DTensor) instead of slices of one flat buffer. So AdamW's
groups, the clipped norm and the names in checkpoints are those of one process; custom operators and compiled
blocks see plain tensors; torch itself reads checkpoints on another number of processes; and it runs on CPUs
over gloo, which Lightning refuses for the first, so that all of this is tested without a GPU.

Weights are gathered as they are stored, in float32, and cast by autocast as on one device: a policy of
bfloat16 would round the gates of the mLSTM and the weights of norms, and give another loss than one device
does. It costs twice the bytes, which NVLink carries beside the computation. Gradients are reduced in float32.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from xlstm.training.sharded import by_name, names_in_order
from xlstm.training.share import Share

StrategyName = Literal["ddp", "fsdp"]
MEET_WITHIN = timedelta(minutes=30)
"""Longest wait of a collective; the death of a process ends the others long before."""
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Environment(LightningEnvironment):
    """Processes of one host that were started by us, and whose group is there already."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share
        self.set_global_rank(share.rank)
        self.set_world_size(share.ranks)

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._share.rank


class Replicas(DDPStrategy):
    """DDP, whose gradients are reduced in the backward of a step's last part, beside its computation.

    Parts are a matter of the module (see TrainingModule), which says when the last one comes.
    """

    def __init__(self) -> None:
        super().__init__(timeout=MEET_WITHIN, gradient_as_bucket_view=True)

    def configure_ddp(self) -> None:
        # Blocks are compiled one by one, and their gradients come block by block: none is to be cut into the
        # graphs of buckets, which the compiler does for whole models.
        torch._dynamo.config.optimize_ddp = False
        super().configure_ddp()
        cast("DistributedDataParallel", self.model).require_backward_grad_sync = False

    def reduce_in_backward(self, loss: Tensor) -> None:
        """The next backward, that of `loss`, reduces what has gathered."""
        replica = cast("DistributedDataParallel", self.model)
        replica.require_backward_grad_sync = True
        prepare_for_backward(replica, loss)
        replica.require_backward_grad_sync = False


class RecordedReplicas(DDPStrategy):
    """Replicas whose steps are recorded: the module sums its gradients itself, after each replay.

    It is not wrapped in DistributedDataParallel, whose hooks would communicate within the recording, and
    whose buckets would want the gradients elsewhere than where the recording writes them.
    """

    def __init__(self) -> None:
        super().__init__(timeout=MEET_WITHIN)

    def configure_ddp(self) -> None:
        """All begin with the weights of the first, as the wrapper would see to."""
        model = cast("nn.Module", self.model)
        for tensor in chain(model.parameters(), model.buffers()):
            dist.broadcast(tensor.detach(), 0)


class Shards(ModelParallelStrategy):
    """FSDP over all processes. Checkpoints are folders of shards; it reads whole files too."""

    def __init__(self, share: Share) -> None:
        super().__init__(data_parallel_size=share.ranks, tensor_parallel_size=1, timeout=MEET_WITHIN)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process takes its shard of the checkpoint.

        Lightning itself would match the optimiser's states by the order of the model's parameters.
        """
        path = Path(checkpoint_path)
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        whole: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        model = cast("nn.Module", self.model)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, whole.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, whole["optimizer_states"], strict=True):
            named = by_name(state, names_in_order(model, optimizer.param_groups))
            set_optimizer_state_dict(model, optimizer, optim_state_dict=named, options=options)
        return whole


def strategy_for(
    name: StrategyName, share: Share, *, recorded: bool
) -> DDPStrategy | ModelParallelStrategy | Literal["auto"]:
    """What Lightning's trainer takes; `auto` for one process. `recorded`: the module records its steps."""
    if share.ranks == 1:
        return "auto"
    if name == "fsdp":
        return Shards(share)
    return RecordedReplicas() if recorded else Replicas()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place, block by block: a block's weights are whole while it computes, and no longer.

    The last block stays whole from its forward to its backward, which come one after the other; what is
    outside the blocks is gathered for both, once.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    mesh = mesh["data_parallel"]
    *blocks, last = _blocks(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(last, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    backbone = cast("nn.Module", model.backbone)
    return iter(cast("nn.ModuleList", backbone.blocks))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The global norm, the same on every process."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights, on the host of the first process; a sharded model's processes must all ask."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return get_model_state_dict(model, options=WHOLE)
    return model.state_dict()
