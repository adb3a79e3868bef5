"""Hugging Face's Llama: config.json of model_type llama, and its names of our Transformer's weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.fields import Fields
from xlstm.checkpoints.weights import require_rows
from xlstm.config import TransformerConfig

MODEL_TYPE = "llama"
OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "backbone.out_norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
BLOCK = {
    "norm_attention": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out_proj": "self_attn.o_proj",
    "norm_ffn": "post_attention_layernorm",
    "ffn.proj_up_gate": "mlp.gate_proj",
    "ffn.proj_up": "mlp.up_proj",
    "ffn.proj_down": "mlp.down_proj",
}


def names(num_blocks: int) -> dict[str, str]:
    """Our names to theirs."""
    return OUTSIDE | {
        f"backbone.blocks.{j}.{ours}.weight": f"model.layers.{j}.{theirs}.weight"
        for j in range(num_blocks)
        for ours, theirs in BLOCK.items()
    }


def read(fields: Fields, weights: Mapping[str, Tensor]) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Our configuration and weights.

    A head matrix that is the embedding's becomes one of its own, and keys and values that several heads share
    are repeated for each: the same function, with a larger cache.

    Raises:
        CheckpointError: an option that our model does not have, or a value that is none.
    """
    d, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    groups = fields.whole("num_key_value_heads", default=heads)
    for name, expected in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        fields.only(name, expected)
    fields.only("head_dim", d // heads)
    if heads % groups:
        raise CheckpointError(
            f"{fields.source}: num_key_value_heads = {groups}: must divide num_attention_heads = {heads}"
        )
    try:
        config = TransformerConfig(
            vocab_size=fields.whole("vocab_size"),
            d_model=d,
            num_blocks=fields.whole("num_hidden_layers"),
            num_heads=heads,
            ffn_dim=fields.whole("intermediate_size"),
            rope_theta=_rope_theta(fields),
            norm_eps=float(fields.number("rms_norm_eps", default=1e-6)),
        )
    except ValueError as error:
        raise CheckpointError(f"{fields.source}: {error}") from error
    ours = {theirs: ours for ours, theirs in names(config.num_blocks).items()}
    found = {
        ours.get(name, name): tensor
        for name, tensor in weights.items()
        if not name.endswith(".rotary_emb.inv_freq")  # old files keep what follows from theta
    }
    if fields.values.get("tie_word_embeddings") and "embedding.weight" in found:
        found.setdefault("lm_head.weight", found["embedding.weight"])
    if groups < heads:
        _repeat_groups(found, heads, groups, config.head_dim)
    return config, found


def write(
    config: TransformerConfig, weights: Mapping[str, Tensor], context_length: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights."""
    fields = {
        "model_type": MODEL_TYPE,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": context_length,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    theirs = names(config.num_blocks)
    return fields, {theirs[name]: tensor for name, tensor in weights.items()}


def _rope_theta(fields: Fields) -> float:
    """Of configurations of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`)."""
    inner = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{fields.source}: rope_parameters = {inner!r}: an object is due")
    kind = inner.get("rope_type", inner.get("type", "default"))
    if kind != "default":
        raise CheckpointError(
            f"{fields.source}: rotary positions of type {kind!r}: this model has the default ones"
        )
    return float(Fields({**fields.values, **inner}, fields.source).number("rope_theta", default=10_000.0))


def _repeat_groups(weights: dict[str, Tensor], heads: int, groups: int, head_dim: int) -> None:
    for name, tensor in weights.items():
        if name.endswith((".attention.k.weight", ".attention.v.weight")):
            require_rows(name, tensor, groups * head_dim)
            shared = tensor.unflatten(0, (groups, head_dim))
            weights[name] = shared.repeat_interleave(heads // groups, 0).flatten(0, 1)
