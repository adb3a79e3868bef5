"""Generation: prefill and decode give the logits of the full forward, whatever the prompts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm.accounting import build_config, mlstm_config, transformer_config
from xlstm.config import ModelConfig
from xlstm.generation import (
    Continuation,
    MemoryLimitError,
    PromptError,
    Sampling,
    Session,
    footprint,
    generate,
    inference_model,
    random_model,
    stream,
)
from xlstm.models import LanguageModel, build_model

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 24,
    "num_blocks": 2,
    "num_heads": 3,
    "ffn_multiple_of": 8,
}
CONFIGS = [mlstm_config(**SHAPE, chunk_size=8), transformer_config(**SHAPE)]
OTHERS = [
    build_config(arch, vocab_size=50, d_model=24, num_blocks=2, num_heads=3, ffn_multiple_of=8)
    for arch in ("xlstm[1:1]", "lstm")
]
BOTH = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
ALL = pytest.mark.parametrize("config", CONFIGS + OTHERS, ids=lambda config: config.arch)
CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
}


def lively(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Gates, norms and logits that depend on all that was read."""
    torch.manual_seed(0)
    model = build_model(config).to(dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "gate_preact" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.5)
    torch.nn.init.normal_(model.lm_head.weight)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def feed(session: Session, text: Tensor) -> Tensor:
    """Logits after each token of text (B, S)."""
    return torch.stack([session.step(column).clone() for column in text.T], 1)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_prefill_and_decode_are_the_full_forward(config: ModelConfig, dtype: torch.dtype) -> None:
    model, text = lively(config, dtype), tokens(3, 30)
    session = Session(model, 3, 30)
    first = session.prefill(text[:, :19]).clone()
    rest = feed(session, text[:, 19:])
    expected = model(text)
    torch.testing.assert_close(torch.cat([first[:, None], rest], 1), expected[:, 18:], **CLOSE[dtype])


@ALL
@pytest.mark.parametrize("prefill_tokens", [3, 12, 1000])
def test_ragged_prompts_in_pieces_then_decode(config: ModelConfig, prefill_tokens: int) -> None:
    """Every sequence as if it were alone, whatever its length and however the prompt is cut."""
    model = lively(config)
    texts = [tokens(1, n, seed=n)[0] for n in (1, 17, 4, 9)]
    later = tokens(4, 6, seed=99)
    session = Session(model, 4, 23, prefill_tokens=prefill_tokens)
    got = torch.cat([session.prefill(texts)[:, None].clone(), feed(session, later)], 1)
    for j, text in enumerate(texts):
        expected = model(torch.cat([text, later[j]])[None])[0, len(text) - 1 :]
        torch.testing.assert_close(got[j], expected, **CLOSE[torch.float64])
    assert session.lengths == (7, 23, 10, 15)
    assert session.state.lengths.tolist() == [7, 23, 10, 15]


@ALL
def test_a_session_reads_on(config: ModelConfig) -> None:
    """Prefill, decode, prefill again: what a conversation does; and from the beginning after a reset."""
    model, text = lively(config), tokens(2, 26)
    session = Session(model, 2, 26)
    for _ in range(2):
        session.prefill(text[:, :7])
        feed(session, text[:, 7:10])
        session.prefill([text[0, 10:20], text[1, 10:13]])
        logits = session.prefill([text[0, 20:26], text[1, 13:26]])
        torch.testing.assert_close(logits, model(text)[:, -1], **CLOSE[torch.float64])
        session.reset()
    # A step before any prefill is that of a new session.
    assert torch.equal(session.step(), Session(model, 2, 26).step())


@BOTH
def test_greedy_tokens_are_those_of_the_full_forward(config: ModelConfig) -> None:
    model, prompt = lively(config), tokens(3, 11)
    text = prompt
    for _ in range(12):
        text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], 1)
    expected = text[:, 11:]
    assert [c.tokens for c in generate(model, prompt, 12)] == expected.tolist()
    session = Session(model, 3, 23)
    session.prefill(prompt)
    assert torch.equal(session.decode(12), expected)
    assert len(expected.unique()) > 1


def test_a_cache_grows_and_stops_at_its_limit() -> None:
    model, text = lively(CONFIGS[1]), tokens(2, 20)
    session = Session(model, 2, 4, max_capacity=20)
    session.prefill(text[:, :4])
    logits = feed(session, text[:, 4:20])
    torch.testing.assert_close(logits, model(text)[:, 4:], **CLOSE[torch.float64])
    assert session.capacity == 20
    with pytest.raises(PromptError, match="21 tokens in a sequence: the limit is 20"):
        session.step()
    with pytest.raises(PromptError, match="30 tokens a sequence: the limit is 20"):
        Session(model, 2, 30, max_capacity=20)


def test_an_mlstm_has_no_limit() -> None:
    model = lively(CONFIGS[0])
    session = Session(model, 1, 1)
    before = session.state.nbytes
    session.prefill(tokens(1, 50))
    session.decode(20)
    assert session.state.nbytes == before


@BOTH
def test_stop_tokens_of_each_sequence(config: ModelConfig) -> None:
    model, prompt = lively(config), tokens(2, 11)
    free = [c.tokens for c in generate(model, prompt, 12)]
    stop = [[free[0][5]], [free[1][2], free[1][9]]]
    ends = [row.index(next(t for t in row if t in allowed)) for row, allowed in zip(free, stop, strict=True)]
    assert generate(model, prompt, 12, stop=stop) == [
        Continuation(row[:end], row[end]) for row, end in zip(free, ends, strict=True)
    ]
    shared = generate(model, prompt, 12, stop=stop[0])[0]
    assert shared == Continuation(free[0][: ends[0]], free[0][ends[0]])


@BOTH
def test_bfloat16_weights_and_states(config: ModelConfig) -> None:
    """As close to float32 as the full forward in bfloat16, and the state is as small as it should be."""
    exact = lively(config, torch.float32)
    text = tokens(2, 24)
    expected = exact(text)[:, -1]
    model = inference_model(lively(config, torch.float32))

    def error(logits: Tensor) -> float:
        return ((logits.float() - expected).norm() / expected.norm()).item()

    whole = error(model(text)[:, -1])
    for state_dtype in (torch.float32, torch.bfloat16):
        session = Session(model, 2, 24, state_dtype=state_dtype)
        session.prefill(text[:, :12])
        logits = feed(session, text[:, 12:])[:, -1]
        assert logits.dtype == torch.float32
        assert 0 < error(logits) < 1.5 * whole + 0.01, (error(logits), whole)
    if config.arch == "mlstm":
        assert model.backbone.blocks[0].mlstm_layer.igate_preact.weight.dtype == torch.float32
        wide, narrow = (
            Session(model, 2, 1, state_dtype=d).state.nbytes for d in (torch.float32, torch.bfloat16)
        )
        assert narrow < 0.6 * wide


@BOTH
def test_a_seed_repeats_the_text(config: ModelConfig) -> None:
    model, prompt = lively(config), tokens(3, 11)
    sampling = Sampling(temperature=2.0)
    texts = [generate(model, prompt, 9, sampling=sampling, seed=seed) for seed in (5, 5, 6)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@BOTH
def test_samples_follow_the_model(config: ModelConfig) -> None:
    """The frequencies of one sampled token are the model's probabilities."""
    model, prompt = lively(config), tokens(1, 11)
    many = prompt.expand(4000, -1)
    drawn = torch.tensor([c.tokens for c in generate(model, many, 1, sampling=Sampling(), seed=0)])
    frequencies = drawn.flatten().bincount(minlength=50) / len(drawn)
    probabilities = model(prompt)[0, -1].softmax(-1)
    assert (frequencies - probabilities).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5


@BOTH
def test_a_stream_may_be_left(config: ModelConfig) -> None:
    model, prompt = lively(config), tokens(1, 5)
    whole = generate(model, prompt, 8)[0].tokens
    steps = stream(Session(model, 1, 13), prompt, 8)
    assert [int(next(steps)) for _ in range(3)] == whole[:3]
    steps.close()


@BOTH
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there is no prompt"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [50]], "token 50 is not in the model's vocabulary of 50"),
        ([[-3]], "token -3 is not"),
        ([[0.5]], "prompt 0 is torch.float32: token ids are integers"),
        ([[[1, 2]]], r"prompt 0 has shape \(1, 2\)"),
    ],
)
def test_prompts_that_cannot_be_read(config: ModelConfig, prompts: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generate(lively(config), prompts, 1)


def test_bad_requests() -> None:
    model = lively(CONFIGS[0])
    assert generate(model, tokens(3, 4), 0) == [Continuation([], None)] * 3
    with pytest.raises(ValueError, match="max_new_tokens = -1"):
        generate(model, tokens(1, 4), -1)
    with pytest.raises(PromptError, match="3 prompts for 2 sequences"):
        Session(model, 2, 8).prefill(tokens(3, 4))
    with pytest.raises(ValueError, match="stop has 1 collections for 2 prompts"):
        generate(model, tokens(2, 4), 1, stop=[[1]])
    with pytest.raises(ValueError, match="stop token 50"):
        generate(model, tokens(2, 4), 1, stop=[50])


@BOTH
def test_a_prompt_longer_than_memory_is_refused_in_a_sentence(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(config, dtype=torch.float32)
    monkeypatch.setattr("xlstm.generation.memory.available_bytes", lambda device: 50_000)
    with pytest.raises(MemoryLimitError, match=r"1 x 4096 tokens need about .* free: shorten") as refusal:
        generate(model, tokens(1, 4090), 6)
    assert "\n" not in str(refusal.value)
    session = Session(model, 1, 8)
    with pytest.raises(MemoryLimitError, match=r"1 x 4090 tokens need .* free: shorten"):
        session.prefill(tokens(1, 4090))
    monkeypatch.undo()
    generate(model, tokens(1, 40), 2)


@BOTH
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_predicted_state_is_the_state(config: ModelConfig, state_dtype: torch.dtype) -> None:
    model = random_model(config)
    predicted = footprint(
        model, batch_size=3, capacity=40, prompt_length=8, state_dtype=state_dtype, prefill_tokens=64
    )
    assert predicted.state == Session(model, 3, 40, state_dtype=state_dtype).state.nbytes
