"""A run spec whose key is frozen, so that a change of the canonical form cannot pass unnoticed."""

from xlstm.config import MLSTMConfig
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec

GOLDEN_SPEC = RunSpec(
    model=MLSTMConfig(vocab_size=256, d_model=32, num_blocks=2, num_heads=2, ffn_dim=88, head_dim_qk=8),
    data=DataSpec(name="golden", tokenizer="bytes", content_hash="ab" * 32),
    optimizer=OptimizerSpec(peak_lr=0.01, warmup_steps=5, cooldown_steps=10),
    context_length=128,
    batch_size=8,
    steps=100,
    validation_tokens=4096,
    validation_every=25,
    seed=0,
)
GOLDEN_RUN_KEY = "e375dcd80c825e3ac7fd6f007c8699cae131ae46eebb6cc5d05fcb61ab6d8ccd"
