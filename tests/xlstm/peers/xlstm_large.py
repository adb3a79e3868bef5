"""Run by a test in a process of its own: what the package xlstm makes of models, its own and ours.

    python xlstm_large.py JOBS.json

As `hugging_face`; its kernels are those in plain PyTorch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from xlstm.xlstm_large.from_pretrained import load_from_pretrained
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

NATIVE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
}


def made(job: dict) -> torch.nn.Module:
    torch.manual_seed(job["seed"])
    config = {**job["config"], **NATIVE, "mode": "inference", "return_last_states": True}
    model = xLSTMLarge(xLSTMLargeConfig(**config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.3)
            elif "embed" not in name:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    folder = Path(job["folder"])
    folder.mkdir()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    names = sorted(weights)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: weights[name] for name in part}, folder / f"model_{number}.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return model


def run(job: dict) -> None:
    if "config" in job:
        model = made(job)
    else:
        names = {f"{name}_name": kernel for name, kernel in NATIVE.items()}
        model = load_from_pretrained(job["folder"], return_last_states=True, **names)
    model.eval()
    tokens = torch.tensor(job["tokens"])
    with torch.no_grad():
        logits, _ = model(tokens)
        texts, _ = model.generate(tokens[:, : job["prompt"]], max_length=job["new"])
    np.savez(job["out"], logits=logits.float().numpy(), generated=texts.numpy()[:, -job["new"] :])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(sys.argv[1], encoding="utf-8") as file:
        for each in json.load(file):
            run(each)
