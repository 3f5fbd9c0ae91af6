"""Six words are learned by the package's own model and loss."""

import math

import pytest
import torch

from vanilla_transformer.illustrate.classic import RECORDED_STEPS, VOCABULARY, train_classic
from vanilla_transformer.modeling_vanilla_transformer import cross_entropy


@pytest.fixture(scope="module")
def classic():
    return train_classic()


def test_it_goes_from_wrong_to_right(classic):
    assert VOCABULARY == ("a", "am", "i", "thanks", "student", "<eos>")
    assert [step["step"] for step in classic["steps"]] == list(RECORDED_STEPS) and 20 <= len(RECORDED_STEPS) <= 30
    labels = [classic["vocabulary"].index(word) for word in classic["targets"]]
    guesses = [[row.index(max(row)) for row in step["probabilities"]] for step in classic["steps"]]
    assert all(guess != label for guess, label in zip(guesses[0], labels, strict=True)) and guesses[-1] == labels
    losses = [step["loss"] for step in classic["steps"]]
    assert all(later < earlier + 1e-4 for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[0] > 3 * losses[-1]


def test_each_loss_is_the_cross_entropy_of_the_smoothed_target_and_that_of_training(classic):
    labels = torch.tensor([[classic["vocabulary"].index(word) for word in classic["targets"]]])
    for step in classic["steps"]:
        by_hand = [
            -sum(q * math.log(p) for q, p in zip(target, row, strict=True))
            for target, row in zip(classic["smoothed"], step["probabilities"], strict=True)
        ]
        assert sum(by_hand) / len(by_hand) == pytest.approx(step["loss"], abs=1e-4)
        logits = torch.tensor([step["probabilities"]]).log()
        assert cross_entropy(logits, labels, classic["smoothing"]).item() == pytest.approx(step["loss"], abs=1e-4)
    for rows in [classic["oneHot"], classic["smoothed"], *(step["probabilities"] for step in classic["steps"])]:
        assert all(sum(row) == pytest.approx(1, abs=1e-5) and len(row) == len(VOCABULARY) for row in rows)
    assert [row.index(1) for row in classic["oneHot"]] == labels[0].tolist()


def test_it_is_the_same_each_time_and_leaves_the_random_state_alone(classic):
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        assert train_classic() == classic
    assert torch.equal(torch.random.get_rng_state(), before)
