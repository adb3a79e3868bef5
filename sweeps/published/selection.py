"""Which published runs the paper's data set of 640 holds, which budget each belongs to, and why not the rest.

The rules are the authors' filters (NX-AI/xlstm_scaling_laws, analysis/isoflop/data.py), as reasons instead of
dropped rows.
"""

from collections.abc import Mapping
from typing import Any

BUDGETS = (6e18, 1e19, 3e19, 1e20, 6e20, 3e21)
BUDGET_TOLERANCE = 0.1
"""A run belongs to a budget that its realised FLOPs are this close to."""
PRESET_RATIOS = (22, 44, 110, 220, 550, 1100, 2200)
PRESET_TOLERANCE = 0.18

DIVERGED_AT = {
    "isoflop_llama_ctx8192": 3.5,
    "isoflop_mlstm_ctx8192": 4.0,
    "isoflop_llama_ctx16384": 4.5,
    "isoflop_mlstm_ctx2048": 4.5,
    "isoflop_mlstm_ctx16384": 4.5,
}
"""Final loss from which a run of a set counts as diverged."""
PAPER_SETS = frozenset({*DIVERGED_AT, "isoflop_llama_ctx2048", "tokenparam_llama", "tokenparam_mlstm"})
TOKENPARAM_TAGS = {
    "scl_mlstm_160Mv2",
    "scl_mlstm_400M",
    "scl_mlstm_830M",
    "scl_mlstm_1.4B",
    "scl_mlstm_2.7B",
    "scl_mlstm_7B",
    "dclm_mLSTMv1_7B_longrun_pretraining_final",
    "scl_llama_160M",
    "scl_llama_400M",
    "scl_llama_830Mv2",
    "scl_llama_1.4Bv2",
    "scl_llama_2.7B",
    "scl_llama_7B",
}
"""Tags of the token/parameter runs that the paper uses."""


def experiment_of(run_set: str) -> str:
    """The experiment that a set of runs belongs to, from the authors' name of the set."""
    if "tokenparam" in run_set:
        return "tokenparam"
    if "gbs256" in run_set:
        return "batch_size"
    return "isoflop_chinchilla" if "flops_chinchilla" in run_set else "isoflop"


def budget_of(train_flops: float) -> float | None:
    """The nominal budget that the realised FLOPs belong to."""
    near = (budget for budget in BUDGETS if abs(train_flops / budget - 1) <= BUDGET_TOLERANCE)
    return min(near, key=lambda budget: abs(train_flops / budget - 1), default=None)


def preset_of(run: Mapping[str, Any]) -> float | None:
    """The token/parameter ratio that a run was meant to have, of those of the paper; None for one between.

    The authors take one mLSTM of 160M (8,000 steps, 51 tokens a parameter) out of its ratio by hand and leave
    the Transformer of the same length in; so do we, since their slopes rest on it.
    """
    ratio = run["token_param_ratio"]
    if run["arch"] == "mlstm" and run["steps"] == 8000 and run["d_model"] == 768:
        return None
    near = (preset for preset in PRESET_RATIOS if abs(ratio - preset) <= PRESET_TOLERANCE * preset)
    return min(near, key=lambda preset: abs(ratio / preset - 1), default=None)


def why_excluded(run: Mapping[str, Any]) -> str | None:
    """Why the authors' filters leave a run out; None where the paper's data set holds it."""
    run_set, loss, budget = run["run_set"], run["loss"], run["budget"]
    if run_set not in PAPER_SETS:
        return f"set {run_set} is not part of the paper's data set"
    if run["status"] != "finished":
        return run["error"]
    if loss is None:
        return "no final validation loss"
    if run["experiment_set"] == "tokenparam":
        tags = set((run["source_tags"] or "").split(","))
        return None if tags & TOKENPARAM_TAGS else "tag is none of the paper's token/parameter runs"
    if loss >= DIVERGED_AT.get(run_set, float("inf")):
        return f"loss {loss:.3g}: diverged"
    return _BY_HAND.get(run_set, lambda *_: None)(run, loss, budget)


def _llama_2048(run: Mapping[str, Any], loss: float, budget: float | None) -> str | None:
    return "loss spike, excluded by hand" if budget == 3e19 and run["N"] == 1223934208 else None


def _llama_8192(run: Mapping[str, Any], loss: float, budget: float | None) -> str | None:
    flops = run["train_flops"]
    spike = 2.75e19 < flops < 4.5e19 and loss > 3.0 and run["N"] == 406635520
    return "loss spike, excluded by hand" if spike or (0.9e20 < flops < 1.4e20 and loss > 3.2) else None


def _mlstm_8192(run: Mapping[str, Any], loss: float, budget: float | None) -> str | None:
    if run["train_flops"] < 3e20 and run["batch_size"] >= 200:
        return "batch of 200 sequences or more below 3e20 FLOPs"
    if budget not in (6e18, 1e19, 3e19, 1e20, 6e20):
        return "at none of the budgets"
    return "loss above 3 at 6e20 FLOPs: diverged" if budget == 6e20 and loss > 3.0 else None


_BY_HAND = {
    "isoflop_llama_ctx2048": _llama_2048,
    "isoflop_llama_ctx8192": _llama_8192,
    "isoflop_mlstm_ctx8192": _mlstm_8192,
}
