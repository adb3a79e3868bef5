"""Programmatic dependent launches: kernels that begin while the one before them still runs.

A decode step is a chain of short kernels, and their starts and ends cost as much as their work. A dependent
launch requests from memory what does not depend on the chain, and waits for the kernel before only when it
needs what that one wrote. A chain is sound because

1. every program of every kernel in it waits (`gdc_wait`) before it reads what another kernel of the chain
   wrote, and before it writes anything. A wait ends when the kernel before has ended and what it wrote is
   visible; that one could end only when its own wait had: so a wait stands for all kernels before;
2. what a kernel reads before its wait was written by no kernel of the chain: weights; and the state of a
   cell, as long as between two steps on one state there is a kernel that is no dependent launch. Such a
   kernel starts when all before have ended, and nothing after it gets past its own wait, or starts at all,
   before it ended: it begins a new chain. In a model's step that is the lookup of the embeddings.
"""

import torch

from kernels.backends import interpreted


def dependent(device: torch.device, wanted: bool = True) -> dict[str, bool]:
    """Arguments that launch a kernel so, where the device can: its constant OVERLAP, and Triton's own."""
    return {"OVERLAP": True, "launch_pdl": True} if wanted and overlaps(device) else {"OVERLAP": False}


def overlaps(device: torch.device) -> bool:
    """Whether there are such launches: from Hopper on."""
    return device.type == "cuda" and not interpreted() and torch.cuda.get_device_capability(device)[0] >= 9
