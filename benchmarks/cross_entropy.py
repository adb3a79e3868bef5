"""Head and loss of a language model, forward and backward: ours beside plain PyTorch and Liger.

    python -m benchmarks.cross_entropy [--json rows.json] [--tokens 32768] [--width 768] [--vocabulary 50304]

bf16, soft cap 30. Errors are those of dhidden and dweight, relative to float32 by plain PyTorch on the same
bf16 inputs (the first 4096 tokens). Liger is measured where the package liger-kernel is there. The floor is
the time of the three products at the speed measured for one of them. On a CPU the shapes are tiny: it works.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import linear_cross_entropy

CAP = 30.0
ERROR_TOKENS = 4096
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(x: Tensor, W: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(CAP * torch.tanh((x @ W.T).float() / CAP), targets)


def liger(x: Tensor, W: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(softcap=CAP, accum_dtype=torch.float32)(W, x, targets)


def contenders(on_gpu: bool) -> dict[str, Loss]:
    ours = partial(linear_cross_entropy, soft_cap=CAP)
    found: dict[str, Loss] = {"plain PyTorch": plain, "plain PyTorch, compiled": torch.compile(plain)}
    if not on_gpu:
        found = {"plain PyTorch": plain}
    found["ours, PyTorch rows"] = partial(ours, backend="reference")
    if on_gpu:
        for chunk in (2048, 4096, 8192, 16384):
            found[f"ours, Triton rows, {chunk} tokens a chunk"] = partial(ours, chunk_tokens=chunk)
        found["ours, default"] = ours
        found["liger-kernel"] = liger
    return found


def step(loss: Loss, x: Tensor, W: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = loss(x, W, targets)
    dx, dW = torch.autograd.grad(value, (x, W))
    return value.detach(), dx, dW


def measure(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> dict[str, Any]:
    x, W, targets = inputs
    on_gpu = x.is_cuda
    head = (x[:ERROR_TOKENS].detach().requires_grad_(), W, targets[:ERROR_TOKENS])
    exact = step(plain, *(t.detach().float().requires_grad_() if t.is_floating_point() else t for t in head))
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(step(loss, *head), exact, strict=True)]
    del exact
    for _ in range(3):
        step(loss, *inputs)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    begin = time.perf_counter()
    for _ in range(repeats):
        step(loss, *inputs)
    if on_gpu:
        torch.cuda.synchronize()
    ms = 1e3 * (time.perf_counter() - begin) / repeats
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu else None
    return {"ms": ms, "peak_gib": peak, "loss_error": errors[0], "dx_error": errors[1], "dW_error": errors[2]}


def floor_ms(x: Tensor, W: Tensor, repeats: int) -> float:
    def product() -> None:
        for part in x.detach().split(4096):
            part @ W.detach().T

    product()
    if x.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        product()
    if x.is_cuda:
        torch.cuda.synchronize()
    return 3e3 * (time.perf_counter() - begin) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50304)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    tokens, width, vocabulary = (
        (options.tokens, options.width, options.vocabulary) if on_gpu else (256, 16, 500)
    )
    repeats = 10 if on_gpu else 2
    torch.manual_seed(0)
    x = torch.randn(tokens, width, device=device).bfloat16().requires_grad_()
    W = (torch.randn(vocabulary, width, device=device) * 3 / width**0.5).bfloat16().requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=device)
    rows: list[dict[str, Any]] = [{"contender": "floor", "ms": floor_ms(x, W, repeats)}]
    print(f"{tokens} tokens, width {width}, vocabulary {vocabulary}; floor {rows[0]['ms']:.2f} ms\n")
    print(
        "| contender | ms | peak GiB | error of loss | of dhidden | of dweight |\n|---|---|---|---|---|---|"
    )
    for name, loss in contenders(on_gpu).items():
        try:
            row = {"contender": name, **measure(loss, (x, W, targets), repeats)}
            gib = "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
            errors = " | ".join(f"{row[key]:.1e}" for key in ("loss_error", "dx_error", "dW_error"))
            print(f"| {name} | {row['ms']:.2f} | {gib} | {errors} |", flush=True)
        except Exception as error:
            row = {"contender": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            print(f"| {name} | {row['error']} |", flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
