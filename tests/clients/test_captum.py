"""Captum attributes predictions to the embeddings of either stack, and reads activations and gradients of layers."""

from collections.abc import Callable

import pytest
import torch
from captum.attr import FeatureAblation, LayerActivation, LayerGradientXActivation, LayerIntegratedGradients
from pairs import CLOSE, STACKS, Kept, is_real, places, stack_of
from torch import nn

UNK = 3
stacks = pytest.mark.parametrize("stack", STACKS)


def log_probability(model: nn.Module, stack: str, batch: dict[str, torch.Tensor]) -> tuple[Callable, torch.Tensor]:
    """Return a function of one stack's ids, and the batch's; it sums the greatest log-probabilities of each row."""
    best = model(**batch).logits.argmax(-1)
    own = "input_ids" if stack == "encoder" else "decoder_input_ids"

    def function(ids: torch.Tensor) -> torch.Tensor:
        repeats = len(ids) // len(best)
        inputs = {name: tensor.repeat(repeats, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
        log_probs = model(**(inputs | {own: ids})).logits.log_softmax(-1)
        chosen = log_probs.gather(2, best.repeat(repeats, 1)[..., None])[..., 0]
        return (chosen * inputs["decoder_attention_mask"]).sum(1)

    return function, batch[own]


@stacks
def test_integrated_gradients_sum_to_the_difference_from_the_baseline_and_equal_marians(pair, batch, stack):
    found = []
    for model in pair:
        function, ids = log_probability(model, stack, batch)
        baseline = torch.full_like(ids, UNK)
        attributions = LayerIntegratedGradients(function, stack_of(model, stack).embed_tokens).attribute(
            ids, baselines=baseline, n_steps=200, internal_batch_size=30
        )
        difference = (function(ids) - function(baseline)).detach()
        assert difference.abs().max() > 0.1
        torch.testing.assert_close(attributions.sum((1, 2)), difference, rtol=0.05, atol=0.05)
        found.append(attributions)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@stacks
def test_the_embedding_of_a_stack_is_hooked_once_for_each_pass_and_with_its_own_ids(pair, batch, stack):
    for model in pair:
        function, ids = log_probability(model, stack, batch)
        kept = Kept()
        with stack_of(model, stack).embed_tokens.register_forward_hook(kept):
            function(ids)
        assert len(kept.calls) == 1 and torch.equal(kept.calls[0][0], ids)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("method", [LayerActivation, LayerGradientXActivation])
def test_activations_and_gradients_of_all_layers_are_those_of_marian(pair, batch, method, training):
    wrong = []
    for name in places(pair.ours):
        found = []
        for model in pair:
            function, ids = log_probability(model.train(training), "encoder", batch)
            found.append(method(function, model.get_submodule(name)).attribute(ids))
        if not torch.allclose(*(attribution[is_real(name, batch)] for attribution in found), **CLOSE):
            wrong.append(name)
    assert not wrong


@stacks
def test_ablation_of_tokens_gives_the_numbers_of_marian(pair, batch, stack):
    found = []
    for model in pair:
        function, ids = log_probability(model, stack, batch)
        with torch.no_grad():
            found.append(FeatureAblation(function).attribute(ids, baselines=UNK))
    assert found[1].any()
    torch.testing.assert_close(*found, **CLOSE)
