"""Generation on a GPU: the captured step against the full forward and against steps that are not captured."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import dependent
from tests.xlstm.test_generation import OTHERS, lively, tokens
from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import ModelConfig
from xlstm.generation import (
    MemoryLimitError,
    Sampling,
    Session,
    footprint,
    generate,
    inference_model,
    packed,
    random_model,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
WIDE = {"vocab_size": 50, "d_model": 128, "num_blocks": 2, "num_heads": 2}
PAIR = [mlstm_config(**WIDE), transformer_config(**WIDE)]
BOTH = pytest.mark.parametrize("config", PAIR, ids=lambda config: config.arch)


def feed(session: Session, text: Tensor) -> Tensor:
    return torch.stack([session.step(column).clone() for column in text.T], 1)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@BOTH
@pytest.mark.parametrize("batch", [1, 4])
def test_the_captured_step_is_the_full_forward(config: ModelConfig, batch: int) -> None:
    """float32 weights, float64 on the CPU as the measure; and as close in bfloat16 as a full forward is."""
    exact, text = lively(config, torch.float64), tokens(batch, 150)
    expected = exact(text)[:, 99:].cuda()
    for dtype in (torch.float32, torch.bfloat16):
        model = inference_model(lively(config, torch.float32), dtype, "cuda")
        whole = error(model(text.cuda())[:, 99:], expected)
        session = Session(model, batch, 150)
        first = session.prefill(text[:, :100].cuda())[:, None].clone()
        logits = torch.cat([first, feed(session, text[:, 100:].cuda())], 1)
        assert error(logits, expected) < 1.5 * whole + 1e-3, dtype


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
@pytest.mark.parametrize(("batch", "few"), [(1, 1), (5, 2), (4, 8), (5, 8)])
def test_dependent_launches_change_nothing(
    monkeypatch: pytest.MonkeyPatch, arch: str, batch: int, few: int
) -> None:
    """Every sum has its order, so a kernel that read what was not yet written shows in the bits."""
    monkeypatch.setattr(packed, "most_chained", lambda d_model: few)
    make = mlstm_config if arch == "mlstm" else transformer_config
    config = make(vocab_size=5000, d_model=1024, num_blocks=6, num_heads=4)
    model = random_model(config, device="cuda")
    prompt = torch.randint(5000, (batch, 20), generator=torch.Generator().manual_seed(0))
    found = []
    for overlap in (False, True):
        monkeypatch.setattr(dependent, "overlaps", lambda device, overlap=overlap: overlap)
        session = Session(model, batch, 200)
        session.prefill(prompt)
        texts = session.decode(150)
        found.append((texts, session.logits.clone(), *(part.clone() for part in session.state.tensors())))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("arch", ["mlstm", "transformer"])
@pytest.mark.parametrize("batch", [3, 4, 8, 13])
def test_maps_of_several_sequences_are_the_librarys_products(
    monkeypatch: pytest.MonkeyPatch, arch: str, batch: int
) -> None:
    """Up to the order of sums. bfloat16 both, so neither is closer to the truth."""
    make = mlstm_config if arch == "mlstm" else transformer_config
    config = make(vocab_size=5000, d_model=1024, num_blocks=3, num_heads=4)
    model = random_model(config, device="cuda")
    text = torch.randint(5000, (batch, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for few in (2, 16):
        monkeypatch.setattr(packed, "most_chained", lambda d_model, few=few: few)
        session = Session(model, batch, 60)
        session.prefill(text[:, :20])
        found.append(feed(session, text[:, 20:].cuda()))
    assert error(found[1], found[0]) < 0.02


@pytest.mark.parametrize("config", PAIR + OTHERS, ids=lambda config: config.arch)
def test_captured_and_not(config: ModelConfig) -> None:
    """The same tokens after ragged prompts, from two sessions of one model; and again after a reset."""
    model = inference_model(lively(config, torch.float32), torch.float32, "cuda")
    prompts = [tokens(1, n, seed=n)[0] for n in (3, 40, 17)]
    texts = []
    for graph in (False, True):
        session = Session(model, 3, 100, cuda_graph=graph)
        for _ in range(2):
            session.prefill(prompts)
            texts.append(session.decode(30))
            session.reset()
    assert all(torch.equal(text, texts[0]) for text in texts[1:])
    assert len(texts[0].unique()) > 1


@BOTH
def test_prompts_in_pieces(config: ModelConfig) -> None:
    """Of one length, and ragged: what a piece has before it is attended to without a mask."""
    model = inference_model(lively(config, torch.float32), torch.bfloat16, "cuda")
    text = tokens(3, 300).cuda()
    for prompts in (text, [text[0], text[1, :40], text[2, :170]]):
        whole, cut = Session(model, 3, 300), Session(model, 3, 300, prefill_tokens=3 * 64)
        expected = whole.prefill(prompts).clone()
        assert error(cut.prefill(prompts), expected) < 0.02
        assert error(cut.step(), whole.step()) < 0.02


@BOTH
def test_a_prefill_that_comes_again_is_the_same(config: ModelConfig) -> None:
    """The first is not captured, the others are; of several lengths in turn, more than are kept."""
    lengths = [30, 60, 30, 60, 30, 7, 8, 9, 10, 7, 8, 9, 10, 10, 9, 30, 60, 7]
    captured = [False, False, True, True, True, *[False] * 4, *[True] * 6, *[False] * 3]
    model = inference_model(lively(config, torch.float32), torch.float32, "cuda")
    session = Session(model, 2, 62)
    text = tokens(2, 60).cuda()
    found: dict[int, list[Tensor]] = {}
    for length, replayed in zip(lengths, captured, strict=True):
        session.reset()
        logits = session.prefill(text[:, :length]).clone()
        assert session.prefill_replayed == replayed
        after = session.step().clone()
        found.setdefault(length, []).append(torch.stack([logits, after]))
    for several in found.values():
        for other in several[1:]:
            torch.testing.assert_close(other, several[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[30][0], found[60][0])


def test_a_cache_that_grows_is_captured_again() -> None:
    model = inference_model(lively(PAIR[1], torch.float32), torch.float32, "cuda")
    prompt = tokens(2, 5).cuda()
    roomy, tight = Session(model, 2, 80), Session(model, 2, 6)
    roomy.prefill(prompt)
    tight.prefill(prompt)
    assert torch.equal(roomy.decode(60), tight.decode(60))
    assert tight.capacity >= 65


@BOTH
def test_seeds_stops_and_streams(config: ModelConfig) -> None:
    model = inference_model(lively(config, torch.float32), device="cuda")
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9)
    first, again, other = (generate(model, [[1], [2, 3]], 40, sampling=sampling, seed=s) for s in (1, 1, 2))
    assert first == again != other
    stop = [first[0].tokens[7]]
    stopped = generate(model, [[1], [2, 3]], 40, sampling=sampling, seed=1, stop=stop)
    assert stopped[0].tokens == first[0].tokens[: first[0].tokens.index(stop[0])]


@BOTH
def test_a_prompt_beyond_memory_is_refused_before_it_is_read(config: ModelConfig) -> None:
    model = random_model(config, device="cuda")
    before = torch.cuda.memory_allocated()
    with pytest.raises(MemoryLimitError, match="free: shorten the prompt"):
        Session(model, 10_000_000, 1_000_000)
    assert torch.cuda.memory_allocated() == before


@BOTH
def test_captured_prefills_give_their_memory_back(config: ModelConfig) -> None:
    """What they hold is known, is what torch cannot use for others, and is free again when forgotten."""
    model = random_model(config, device="cuda")
    session, prompt = Session(model, 2, 16_384), tokens(2, 16_000).cuda()
    session.prefill(prompt)
    session.reset()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    session.prefill(prompt)
    assert session.prefill_replayed
    kept = session._prefills
    assert kept is not None
    torch.cuda.empty_cache()
    assert kept.held > 2**26
    assert abs(torch.cuda.memory_reserved() - before - kept.held) < 2**25
    kept.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**25


@BOTH
@pytest.mark.parametrize("num_blocks", [2, 4])
def test_the_prediction_covers_what_a_prefill_takes(config: ModelConfig, num_blocks: int) -> None:
    """And is not many times more. Only a block between two others has all of it alive."""
    model = random_model(replace(config, num_blocks=num_blocks), device="cuda")
    session = Session(model, 2, 16_384, graph_prefill=False)
    prompt = tokens(2, 16_000).cuda()
    session.prefill(prompt)  # workspaces and kernels
    session.reset()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    session.prefill(prompt)
    taken = torch.cuda.max_memory_allocated() - before
    predicted = footprint(
        model, batch_size=2, capacity=16_384, prompt_length=16_000, prefill_tokens=65_536
    ).prefill
    assert taken <= predicted <= 3 * taken, (taken, predicted)
