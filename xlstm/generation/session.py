"""A batch of sequences under way: prefill, then a token of each at a time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from xlstm.config import TransformerConfig
from xlstm.generation.graphs import HOST_BOUND, PrefillGraphs, StepGraph
from xlstm.generation.memory import Footprint, available_bytes, footprint, refuse_what_does_not_fit
from xlstm.generation.packed import PackedModel, can_pack
from xlstm.generation.prompts import PromptError, Prompts, pieces, read_prompts
from xlstm.models import LanguageModel
from xlstm.models.decoding import Layout

PREFILL_TOKENS = 65_536
"""Tokens of the batch that go through the model at once; longer prompts come in pieces."""


class Session:
    """Sequences that a model goes on with, and what it remembers of them.

    `tokens` (B,) int64 are what `step` reads next: the likeliest ones unless the caller writes others.
    `logits` (B, vocabulary) float32 (float64 of a float64 model) are the last ones. Both are buffers that
    stay where they are, like the state.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        batch_size: int,
        capacity: int,
        *,
        max_capacity: int | None = None,
        state_dtype: torch.dtype = torch.float32,
        cuda_graph: bool | None = None,
        graph_prefill: bool | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        check_memory: bool = True,
    ) -> None:
        """`capacity`: tokens a sequence, prompt and new ones, for which a Transformer's cache has room.

        The cache grows by half when it is full, up to `max_capacity` tokens (None: as long as there is
        memory). An mLSTM's state does not depend on the length; `state_dtype` is float32 or bfloat16.
        `cuda_graph` None means on a GPU: the step is captured here, once, and again when a cache grows.
        `graph_prefill` None means as the step: a prefill that takes longer to launch than to run is captured
        when its length comes again, which keeps the memory of its activations as long as nothing needs it.

        Raises:
            MemoryLimitError: state and prefill would not fit, before anything of it is allocated.
        """
        if batch_size < 1 or capacity < 1 or prefill_tokens < 1:
            raise ValueError(
                f"batch_size = {batch_size}, capacity = {capacity}, prefill_tokens = {prefill_tokens}:"
                " must be at least 1"
            )
        self.model = model
        self.device = model.embedding.weight.device
        self.batch_size = batch_size
        self.state_dtype = state_dtype
        self.prefill_tokens = prefill_tokens
        self.max_capacity = max_capacity
        self._limited = isinstance(model.config, TransformerConfig)
        self._check_memory = check_memory
        self._longest_prompt = 0
        self._prefills: PrefillGraphs | None = None
        self._lengths = [0] * batch_size
        if self._limited and max_capacity is not None and capacity > max_capacity:
            raise PromptError(f"{capacity} tokens a sequence: the limit is {max_capacity}")
        self.capacity = capacity
        self._refuse(capacity, capacity, new_state=True)
        self.state = model.new_state(batch_size, capacity, state_dtype)
        dtype = torch.promote_types(model.lm_head.weight.dtype, torch.float32)
        self.tokens = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.logits = torch.zeros(batch_size, model.config.vocab_size, dtype=dtype, device=self.device)
        packs = self.device.type == "cuda" and dtype == torch.float32 and can_pack(model)
        self._packed = PackedModel(model, batch_size) if packs else None
        self._graphed = self.device.type == "cuda" if cuda_graph is None else cuda_graph
        self._graph: StepGraph | None = None
        captures = self._graphed if graph_prefill is None else graph_prefill
        if captures and self._packed is not None:
            self._prefills = PrefillGraphs(_host_bound_tokens(model))
        self._capture()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each sequence has seen."""
        return tuple(self._lengths)

    @property
    def prefill_replayed(self) -> bool:
        """Whether the last piece of a prompt was read by a captured graph."""
        return self._prefills is not None and self._prefills.replayed

    @torch.no_grad()
    def prefill(self, prompts: Prompts) -> Tensor:
        """Read a prompt for each sequence, behind what it has seen: logits (B, vocabulary) after its end.

        A batch (B, S) or B sequences of any lengths, which are packed and not padded.

        Raises:
            PromptError: another number of prompts than sequences, an empty one, a token out of range.
            MemoryLimitError: a cache that has to grow and cannot.
        """
        if len(prompts) != self.batch_size:
            raise PromptError(f"{len(prompts)} prompts for {self.batch_size} sequences: give one for each")
        rows = read_prompts(prompts, self.model.config.vocab_size, self.device)
        ends = [seen + len(row) for seen, row in zip(self._lengths, rows, strict=True)]
        self._make_room(max(ends), max(len(row) for row in rows))
        longest = max(1, self.prefill_tokens // self.batch_size)
        for tokens, layout in pieces(rows, self._lengths, longest):
            read = self._read
            if self._prefills is not None:
                read = partial(self._prefills, self._read, self._fits_once_more)
            logits = read(tokens, layout)
            self.logits[slice(None) if layout.rows is None else layout.rows] = logits
        self._set_lengths(ends)
        self.tokens.copy_(self.logits.argmax(-1))
        return self.logits

    @torch.no_grad()
    def step(self, tokens: Tensor | None = None) -> Tensor:
        """Read a token of each sequence, by default those in `tokens`: logits (B, vocabulary) after them.

        Does not wait for the device. The logits are a buffer: the next step writes over them.
        """
        self._make_room(max(self._lengths) + 1)
        if tokens is not None:
            self.tokens.copy_(tokens)
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()
        self._lengths = [seen + 1 for seen in self._lengths]
        return self.logits

    @torch.no_grad()
    def decode(self, steps: int) -> Tensor:
        """The likeliest tokens, (B, steps), each read as it is chosen; nothing waits for the device."""
        chosen = torch.empty(self.batch_size, steps, dtype=torch.int64, device=self.device)
        for j in range(steps):
            chosen[:, j] = self.tokens
            self.step()
        return chosen

    @torch.no_grad()
    def reserve(self, tokens: int) -> None:
        """Room for so many more tokens a sequence; PromptError or MemoryLimitError where there is none."""
        self._make_room(max(self._lengths) + tokens)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all sequences; buffers and the captured step stay."""
        self.state.reset()
        self._lengths = [0] * self.batch_size
        self.tokens.zero_()

    def _forward(self) -> None:
        if self._packed is not None:
            self._packed.step(self.tokens, self.state, self.logits)
            return
        self.logits.copy_(self.model.step(self.tokens, self.state))
        self.tokens.copy_(self.logits.argmax(-1))

    def _read(self, tokens: Tensor, layout: Layout) -> Tensor:
        if self._packed is not None:
            return self._packed.prefill(tokens, self.state, layout)
        return self.model.prefill(tokens, self.state, layout).to(self.logits.dtype)

    def _set_lengths(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        self.state.lengths.copy_(torch.tensor(self._lengths))

    def _make_room(self, needed: int, prompt_length: int = 1) -> None:
        """For `needed` tokens a sequence, `prompt_length` of which come at once."""
        if not self._limited or needed <= self.capacity:
            if prompt_length > self._longest_prompt:
                self._refuse(self.capacity, prompt_length, new_state=False)
            return
        if self.max_capacity is not None and needed > self.max_capacity:
            raise PromptError(f"{needed} tokens in a sequence: the limit is {self.max_capacity}")
        capacity = max(needed, self.capacity + self.capacity // 2)
        if self.max_capacity is not None:
            capacity = min(capacity, self.max_capacity)
        self._refuse(capacity, prompt_length, new_state=True)
        full, self.state = self.state, self.model.new_state(self.batch_size, capacity, self.state_dtype)
        tokens, logits = self.tokens.clone(), self.logits.clone()
        self._capture()
        for old, new in zip(full.blocks, self.state.blocks, strict=True):
            for source, target in zip(old, new, strict=True):
                target[:, :, : self.capacity] = source
        self.capacity = capacity
        self.tokens.copy_(tokens)
        self.logits.copy_(logits)
        self._set_lengths(self._lengths)

    def _capture(self) -> None:
        """The step as a graph, on a state that is empty before and after."""
        if self._prefills is not None:
            self._prefills.forget()
        if self._graphed:
            self._graph = StepGraph(self._forward, self.device)
            self.state.reset()

    def _refuse(self, capacity: int, prompt_length: int, *, new_state: bool) -> None:
        """MemoryLimitError where a prompt does not fit, or a state of this capacity where one is due."""
        if not self._check_memory:
            return
        needed = self._footprint(capacity, prompt_length)
        if not new_state:
            needed = replace(needed, state=0)
        held = 0 if self._prefills is None else self._prefills.held
        if self._prefills is not None and needed.total > available_bytes(self.device) - held:
            self._prefills.forget()
        tokens = capacity if new_state else prompt_length
        refuse_what_does_not_fit(needed, self.device, f"{self.batch_size} x {tokens} tokens")
        self._longest_prompt = max(self._longest_prompt, prompt_length)

    def _fits_once_more(self, shape: torch.Size) -> bool:
        """Whether a captured prefill may keep its activations, and the longest prompt so far still fits."""
        assert self._prefills is not None
        kept, longest = (
            self._footprint(self.capacity, length).prefill for length in (shape[1], self._longest_prompt)
        )
        return self._prefills.held + kept + longest <= available_bytes(self.device)

    def _footprint(self, capacity: int, prompt_length: int) -> Footprint:
        return footprint(
            self.model,
            batch_size=self.batch_size,
            capacity=capacity,
            prompt_length=prompt_length,
            state_dtype=self.state_dtype,
            prefill_tokens=self.prefill_tokens,
        )


def _host_bound_tokens(model: LanguageModel) -> int:
    """Tokens of a batch up to which a prefill is worth a graph."""
    weights = sum(parameter.numel() for parameter in model.backbone.parameters())
    return int(HOST_BOUND * model.config.num_blocks / weights)
