"""transformers' xLSTM and Llama as engines to time: their models, their caches, their greedy loop.

Llama decodes from a StaticCache, which is made for captured steps; the xLSTM from its xLSTMCache with a
float32 state, by its own PyTorch kernels where the package xlstm is not installed. Both steps are captured as
a CUDA graph if `graph`, with our own capture: torch.compile would compile again for every batch and length.
"""

from typing import Any

import torch
from torch import Tensor, nn

from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.generation.graphs import StepGraph
from xlstm.timing.points import TimedModel


def peer_model(config: TimedModel, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Their model of the same shape with random weights."""
    _hide_our_name()
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.xlstm import xLSTMConfig, xLSTMForCausalLM

    with torch.device(device):
        if isinstance(config, MLSTMConfig):
            model = xLSTMForCausalLM(
                xLSTMConfig(
                    vocab_size=config.vocab_size,
                    hidden_size=config.d_model,
                    num_hidden_layers=config.num_blocks,
                    num_heads=config.num_heads,
                    ffn_proj_factor=(config.ffn_dim - 1) / config.d_model,  # theirs rounds up to 64
                    autocast_kernel_dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
                    max_inference_chunksize=16_384,
                )
            )
        else:
            model = LlamaForCausalLM(llama_config(config, LlamaConfig))
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():  # not the buffers: Llama's frequencies stay float32, as when loaded
        parameter.data = parameter.data.to(dtype)
    if isinstance(config, MLSTMConfig) and dtype != torch.float32:
        # Their PyTorch cell multiplies keys by gates in float32, and the result by values in the dtype of the
        # model: it runs in 16 bits under autocast alone.
        model.forward = torch.autocast(device.type, dtype)(model.forward)
    return model


def _hide_our_name() -> None:
    """transformers takes any package of the name xlstm for NX-AI's, and would import its parts from ours."""
    import transformers.utils
    import transformers.utils.import_utils

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_xlstm_available = lambda: False  # type: ignore[assignment]


def llama_config(config: TransformerConfig, kind: Any) -> Any:
    """Their configuration of our Transformer."""
    return kind(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.num_blocks,
        num_attention_heads=config.num_heads,
        max_position_embeddings=131_072,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


class PeerEngine:
    """Greedy generation with their model; `prefill` and `step` as in `xlstm.generation.Session`."""

    def __init__(self, model: nn.Module, batch_size: int, capacity: int, *, graph: bool) -> None:
        self.model = model
        self.batch_size = batch_size
        self.capacity = capacity
        self.is_llama = type(model).__name__.startswith("Llama")
        self.device = next(model.parameters()).device
        self.tokens = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.logits: Tensor | None = None
        self._wanted = graph
        self._graph: StepGraph | None = None
        self.cache = self._new_cache()
        self.decode = "graph" if graph else "eager"

    def reset(self) -> None:
        if self._graph is None:
            self.cache = self._new_cache()
        elif self.is_llama:
            for layer in self.cache.layers:
                layer.cumulative_length.zero_()
        else:
            for state in self.cache.rnn_state.values():
                for part in state:
                    part.zero_()

    def prefill(self, prompts: Tensor) -> Tensor:
        logits = self._forward(prompts)
        self.tokens.copy_(logits.argmax(-1))
        self.logits = logits.float()
        return self.tokens

    def adopt(self, alone: "PeerEngine") -> None:
        """Have every sequence go on where the only one of another engine is. Both have read something, which
        makes the buffers."""
        if self.is_llama:
            for mine, theirs in zip(self.cache.layers, alone.cache.layers, strict=True):
                mine.keys.copy_(theirs.keys.expand_as(mine.keys))
                mine.values.copy_(theirs.values.expand_as(mine.values))
        else:
            for layer, state in alone.cache.rnn_state.items():
                for mine, part in zip(self.cache.rnn_state[layer], state, strict=True):
                    mine.copy_(part.expand_as(mine))
        self.tokens.copy_(alone.tokens.expand_as(self.tokens))

    def rewind(self, length: int) -> None:
        """Back to so many tokens; an xLSTM goes on from where it is, which takes the same time."""
        if self.is_llama:
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(length)

    def steps(self, count: int) -> Tensor:
        for _ in range(count):
            self.step()
        return self.tokens

    def step(self) -> Tensor:
        if self._wanted and self._graph is None:
            self._capture()
        if self._graph is None:
            self._one()
        else:
            self._graph.replay()
        assert self.logits is not None
        return self.logits

    def _one(self) -> None:
        logits = self._forward(self.tokens[:, None])
        if self.logits is None:
            self.logits = logits.float().clone()
        self.logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))

    def _forward(self, tokens: Tensor) -> Tensor:
        """Logits of the last token (B, vocabulary)."""
        if self.is_llama:
            out = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        else:
            out = self.model(input_ids=tokens, cache_params=self.cache, use_cache=True)
        return out.logits[:, -1]

    def _capture(self) -> None:
        """Capture a step behind a prefill, and put back what the trial steps changed."""
        kept = [tensor.clone() for tensor in self._small_state()]
        tokens, logits = self.tokens.clone(), self.logits
        self._graph = StepGraph(self._one, self.device)
        for tensor, before in zip(self._small_state(), kept, strict=True):
            tensor.copy_(before)
        self.tokens.copy_(tokens)
        if logits is not None and self.logits is not None:
            self.logits.copy_(logits)

    def _small_state(self) -> list[Tensor]:
        """What trial steps change and a later step would see: what lies behind a cache's end is not."""
        if self.is_llama:
            return [layer.cumulative_length for layer in self.cache.layers]
        return [part for state in self.cache.rnn_state.values() for part in state]

    def _new_cache(self) -> Any:
        from transformers import StaticCache
        from transformers.models.xlstm.modeling_xlstm import xLSTMCache

        config: Any = self.model.config
        if self.is_llama:
            return StaticCache(config=config, max_cache_len=self.capacity)
        return xLSTMCache(config, self.batch_size, dtype=torch.float32, device=str(self.device))
