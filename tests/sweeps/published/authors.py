"""Files as the authors publish them: pickles of their class, with pandas tables of logs."""

import pickle
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MODULE = "mlstm_scaling_laws.common.wandb_run_data"


@cache
def run_class(module: str) -> type:
    """Their class under one of its module names; pickles of it name that module."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    made = type("WandBRunData", (), {"__module__": module})
    sys.modules[module].WandBRunData = made  # type: ignore[attr-defined]
    return made


def log(key: str, steps: list[int], values: list[Any]) -> pd.DataFrame:
    """As pandas 2 wrote it: column names are Python's texts."""
    table = pd.DataFrame({"_step": steps, key: values})
    table.columns = pd.Index(["_step", key], dtype=object)
    return table


def llama(
    name: str = "dclm_llama_80M_ctx2048_lr0.003_steps2000_nb10_ed512_hd64_gbs512",
    *,
    run_id: str = "abc",
    steps: int = 2000,
    loss: float | None = 3.25,
    created_at: str = "2025-04-12T02:00:05Z",
    module: str = MODULE,
    logged_steps: int | None = None,
    blocks: int = 10,
) -> Any:
    """A Transformer run. `loss=None`: one that died before it logged."""
    run = run_class(module)()
    run.__dict__ |= {"name": name, "id": run_id, "path": ["them", "theirs", run_id], "step_key": "_step"}
    run.created_at = created_at
    run.metadata = {"email": "someone@example.com", "host": "their-node", "gpu_nvidia": [{"name": "H100"}]}
    run.config = {
        "trainer.seed": 0,
        "optimizer.weight_decay": 0.1,
        "optimizer.scheduler": str(
            {"lr": 3e-3, "decay_steps": steps, "warmup_steps": 750, "cooldown_steps": 1000}
        ),
        "model.model_class": "xlstm_jax.models.llama.llama.LlamaTransformer",
        "model.model_config.embedding_dim": 512,
        "model.model_config.num_blocks": blocks,
        "model.model_config.head_dim": 64,
        "model.model_config.vocab_size": 50304,
        "model.model_config.ffn_multiple_of": 64,
    }
    run.summary, run.logs = {}, {}
    if loss is not None:
        _trained(run, steps, logged_steps or steps, loss, 512, None)
    return run


def mlstm(
    name: str = "dclm_mLSTMv1_160M_ctx8192_lr0.003_steps3500_nh6_gbs128",
    *,
    run_id: str = "xyz",
    steps: int = 3500,
    loss: float = 3.278,
    created_at: str = "2024-12-01T00:00:00Z",
    d_model: int = 768,
    heads: int = 6,
    blocks: int = 12,
    batch: int = 128,
    peak_lr: float = 0.003,
    context: int | None = 8192,
    start_step: int = 0,
) -> Any:
    """An xLSTM run, in the keys that the authors' loader reads."""
    run = run_class(MODULE)()
    run.__dict__ |= {"name": name, "id": run_id, "path": [], "step_key": "_step", "metadata": {}}
    run.created_at = created_at
    model, layer = "model.model_config.", "model.model_config.mlstm_block.mlstm."
    run.config = {
        "trainer.seed": 0,
        "optimizer.scheduler": f"{{'lr': {peak_lr}, 'decay_steps': {steps}, 'warmup_steps': 750}}",
        "model.model_class": "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel",
        f"{model}embedding_dim": d_model,
        f"{model}num_blocks": blocks,
        f"{model}vocab_size": 50304,
        f"{model}mlstm_block.feedforward.proj_factor": 2.667,
        f"{layer}layer_type": "mlstm_v1",
        f"{layer}num_heads": heads,
        f"{layer}qk_dim_factor": 0.5,
        f"{layer}round_proj_up_to_multiple_of": 64,
        f"{layer}mlstm_cell.backend.kwargs": "{'backend_name': 'triton', 'chunk_size': 64}",
    }
    if context is not None:
        run.config[f"{model}context_length"] = context
    run.summary, run.logs = {}, {}
    _trained(run, steps, steps, loss, batch, None, start_step)
    return run


def _trained(
    run: Any, steps: int, last: int, loss: float, batch: int, params: int | None, start_step: int = 0
) -> None:
    run.summary = {
        "_runtime": 3600.0,
        "dataset/": {"global_batch_size": batch, "num_train_steps": steps},
        "model/": {} if params is None else {"num_params": params},
        "parallel/": {"num_devices": 8},
    }
    train = list(range(start_step + 50, last + 1, 50))
    fall = np.linspace(9.0, loss, len(train)).tolist()
    run.logs = {
        "train/.loss_mean": log("train/.loss_mean", train, fall),
        "train/.step_time": log("train/.step_time", train, [0.5] * len(train)),
        "train/.grad_norm_max": log("train/.grad_norm_max", train, ["NaN", *fall[1:]]),
        "val/.dclm_loss": log("val/.dclm_loss", [last // 2, last], [loss + 0.5, loss]),
        "val/.slimpajama627b_loss": log("val/.slimpajama627b_loss", [last], [loss + 0.25]),
    }


def save(path: Path, data: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path
