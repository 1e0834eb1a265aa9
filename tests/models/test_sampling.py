import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from capfilt.models.compute.sampling import pick, processed_probabilities
from capfilt.models.compute.uniforms import uniforms
from capfilt.models.recipe import Nucleus

VOCAB, END = 60, 3


def theirs(
    logits: torch.Tensor, history: torch.Tensor, recipe: Nucleus, min_length: int
) -> torch.Tensor:
    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(recipe.repetition_penalty),
            MinLengthLogitsProcessor(min_length, END),
        ]
    )
    steps.append(TemperatureLogitsWarper(recipe.temperature))
    if recipe.top_k:
        steps.append(TopKLogitsWarper(recipe.top_k))
    if recipe.top_p < 1:
        steps.append(TopPLogitsWarper(recipe.top_p))
    return torch.softmax(steps(history, logits.clone()), dim=-1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.3, 0.7, 0.9, 1.0]),
    st.sampled_from([0, 5, 50]),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([1.0, 1.1, 2.0]),
    st.booleans(),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, top_p: float, top_k: int, temperature: float, penalty: float, short: bool
) -> None:
    torch.manual_seed(seed)
    logits, history = torch.randn(4, VOCAB) * 3, torch.randint(0, VOCAB, (4, 6))
    recipe = Nucleus(top_p, top_k, temperature, penalty)
    probabilities, tokens = processed_probabilities(logits, history, recipe, END if short else None)
    ours = torch.zeros(4, VOCAB, dtype=torch.float64).scatter_add(1, tokens, probabilities)
    expected = theirs(logits, history, recipe, 10 if short else 0)
    assert (ours - expected).abs().max() < 2e-6


def test_pick_inverts_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    tokens = torch.tensor([[7, 5, 9, 1]])
    for noise, expected in [(0.0, 7), (0.499, 7), (0.5, 5), (0.799, 5), (0.81, 9), (0.9999999, 9)]:
        assert pick(probabilities, tokens, torch.tensor([noise])).item() == expected


def test_draws_follow_the_distribution() -> None:
    count = 20_000
    noise = uniforms(0, [f"key{i}" for i in range(count)], 1, 1).ravel()
    probabilities = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).expand(count, 3)
    drawn = pick(probabilities, torch.tensor([[0, 1, 2]]).expand(count, 3), torch.from_numpy(noise))
    shares = torch.bincount(drawn, minlength=3) / count
    assert (shares - torch.tensor([0.6, 0.3, 0.1])).abs().max() < 0.012


def test_noise_belongs_to_seed_key_caption_and_step() -> None:
    whole = uniforms(7, ["a", "b", "c"], 4, 10)
    assert np.array_equal(uniforms(7, ["b"], 4, 10)[0], whole[1])
    assert np.array_equal(uniforms(7, ["b"], 2, 5)[0], whole[1, :2, :5])
    assert not np.array_equal(uniforms(8, ["b"], 4, 10)[0], whole[1])
    assert len(np.unique(whole)) == whole.size
    assert whole.min() >= 0.0
    assert whole.max() < 1.0
    assert abs(uniforms(1, [str(i) for i in range(2000)], 3, 7).mean() - 0.5) < 0.005
