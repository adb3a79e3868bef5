"""Generation with a state takes the tokens that the full forward would take."""

import pytest
import torch

from xlstm.accounting import mlstm_config, transformer_config
from xlstm.config import ModelConfig
from xlstm.generation import generate
from xlstm.models import LanguageModel, build_model

SHAPE = {"vocab_size": 50, "d_model": 24, "num_blocks": 2, "num_heads": 3, "ffn_multiple_of": 8}
BOTH = pytest.mark.parametrize(
    "config",
    [mlstm_config(**SHAPE, chunk_size=8), transformer_config(**SHAPE)],
    ids=lambda config: config.arch,
)


def model_and_prompt(config: ModelConfig) -> tuple[LanguageModel, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(config).double()
    torch.nn.init.normal_(model.lm_head.weight)
    return model, torch.randint(50, (3, 11))


@BOTH
def test_greedy_tokens_are_those_of_the_full_forward(config: ModelConfig) -> None:
    model, prompt = model_and_prompt(config)
    generated = generate(model, prompt, 12, temperature=0)
    text = prompt
    for _ in range(12):
        text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(generated, text[:, 11:])
    assert len(generated.unique()) > 1


@BOTH
def test_samples_follow_the_model(config: ModelConfig) -> None:
    """The frequencies of one sampled token are the model's probabilities."""
    model, prompt = model_and_prompt(config)
    many = prompt[:1].expand(4000, -1)
    drawn = generate(model, many, 1, generator=torch.Generator().manual_seed(0))
    frequencies = drawn.flatten().bincount(minlength=50) / len(drawn)
    probabilities = model(prompt[:1])[0, -1].softmax(-1)
    assert (frequencies - probabilities).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5


@BOTH
def test_a_seed_repeats_the_text(config: ModelConfig) -> None:
    model, prompt = model_and_prompt(config)
    texts = [generate(model, prompt, 9, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@BOTH
def test_bad_requests(config: ModelConfig) -> None:
    model, prompt = model_and_prompt(config)
    assert generate(model, prompt, 0).shape == (3, 0)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, prompt[:, :0], 1)
    with pytest.raises(ValueError, match="temperature = -1"):
        generate(model, prompt, 1, temperature=-1)
