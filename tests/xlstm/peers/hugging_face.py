"""Run by a test in a process of its own: what transformers makes of models, its own and ours.

    python hugging_face.py JOBS.json

Each job says where a model lies, or of what configuration it shall be made and where it shall be put, which
tokens it reads, and where logits (B, S, V) and greedily generated tokens (B, N) go; or which text it reads.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
# transformers takes any package named xlstm for the official one; ours is none of its business.
sys.modules["xlstm"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.models.xlstm.modeling_xlstm import xLSTMPreTrainedModel  # noqa: E402

_init_weights = xLSTMPreTrainedModel._init_weights


def _init_what_can_be(self: xLSTMPreTrainedModel, module: torch.nn.Module) -> None:
    """transformers 5.24 fails to initialise gates of the fused mode, also where they are about to be read."""
    if self.config.weight_mode == "single":
        _init_weights(self, module)


xLSTMPreTrainedModel._init_weights = _init_what_can_be


def made(job: dict) -> torch.nn.Module:
    """A model whose weights are not at their start, where much is zero or one; saved."""
    torch.manual_seed(job["seed"])
    config = AutoConfig.for_model(**job["config"])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.3)
            elif "embed" in name:
                weight.normal_()
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    model.save_pretrained(job["folder"], max_shard_size=job.get("max_shard_size", "5GB"))
    return model


def read_text(job: dict) -> None:
    """What AutoTokenizer makes of a text, and of its tokens again."""
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    tokens = tokenizer(job["text"], add_special_tokens=False).input_ids
    np.savez(job["out"], tokens=tokens, text=tokenizer.decode(tokens), end=tokenizer.eos_token_id)


def run(job: dict) -> None:
    if "text" in job:
        read_text(job)
        return
    if "config" in job:
        model = made(job)
    else:
        model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    model.eval()
    tokens = torch.tensor(job["tokens"])
    with torch.no_grad():
        logits = model(tokens).logits
        texts = model.generate(
            tokens[:, : job["prompt"]],
            attention_mask=torch.ones_like(tokens[:, : job["prompt"]]),
            max_new_tokens=job["new"],
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    np.savez(job["out"], logits=logits.numpy(), generated=texts[:, job["prompt"] :].numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(sys.argv[1], encoding="utf-8") as file:
        for each in json.load(file):
            run(each)
