"""Opacus computes the gradient of each sample and trains with differential privacy."""

import copy
import warnings

import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from pairs import (
    assert_same_parameters,
    gradients_of,
    loss_from_logits,
    make_batch,
    make_labels,
    make_pair,
    trainable_of,
)
from torch import nn
from torch.utils.data import DataLoader

# Embeddings have inputs without gradients, which torch says of every full backward hook on them.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
own_loss = pytest.mark.parametrize("own_loss", [True, False], ids=["the model's loss", "a loss of the logits"])


def frozen_tables(model: nn.Module) -> nn.Module:
    """Freeze MarianMT's tables of positions, which Opacus refuses to train and nobody does."""
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            parameter.requires_grad_(False)
    return model.train()


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor], labels: torch.Tensor, own_loss: bool) -> torch.Tensor:
    outputs = model(**batch, labels=labels)
    return outputs.loss if own_loss else loss_from_logits(outputs.logits, labels)


@own_loss
@pytest.mark.parametrize("tied", [False], ids=["untied"])
def test_gradients_of_samples_are_those_of_the_samples_alone_and_those_of_marian(tied, own_loss):
    """Three pairs without padding, so that the loss of the batch is the mean of the losses of its rows."""
    batch = make_batch(3)
    batch = {name: tensor[:1].repeat(3, 1) for name, tensor in batch.items()}
    batch["input_ids"] = torch.stack([batch["input_ids"][0].roll(i) for i in range(3)])
    labels = torch.stack([make_labels(make_batch(1))[0].roll(i) for i in range(3)])
    found = []
    for model in make_pair(tie_word_embeddings=tied):
        frozen_tables(model)
        alone = []
        for row in range(3):
            model.zero_grad()
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            loss_of(model, one, labels[row : row + 1], own_loss).backward()
            alone.append(gradients_of(model))
        model.zero_grad()
        sampled = GradSampleModule(copy.deepcopy(model), loss_reduction="mean")
        loss_of(sampled, batch, labels, own_loss).backward()
        named = sampled._module.named_parameters()
        found.append({name: p.grad_sample.clone() for name, p in named if p.requires_grad})
        expected = {name: torch.stack([grads[name] for grads in alone]) for name in alone[0]}
        assert_same_parameters(found[-1], expected)
    assert_same_parameters(*found)


@own_loss
def test_private_training_without_noise_takes_the_steps_of_marian(own_loss):
    batch = make_batch(3)
    rows = [
        {name: tensor[row] for name, tensor in batch.items()} | {"labels": make_labels(batch)[row]} for row in range(3)
    ]
    trained, losses = [], []
    for model in make_pair(tie_word_embeddings=False):
        frozen_tables(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            private, optimizer, loader = PrivacyEngine().make_private(
                module=model,
                optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
                data_loader=DataLoader(rows, batch_size=3),
                noise_multiplier=0.0,
                max_grad_norm=1.0,
                poisson_sampling=False,
            )
            for _ in range(3):
                for inputs in loader:
                    optimizer.zero_grad()
                    loss = loss_of(private, inputs, inputs.pop("labels"), own_loss)
                    loss.backward()
                    optimizer.step()
                    losses.append(float(loss.detach()))
        trained.append(trainable_of(private._module))
    assert losses[5] < losses[3] and losses[:3] == pytest.approx(losses[3:], rel=1e-4)
    assert_same_parameters(*trained)


def test_opacus_finds_nothing_to_refuse():
    """Its validator knows of modules that mix the samples of a batch."""
    from opacus.validators import ModuleValidator

    assert ModuleValidator.validate(make_pair(tie_word_embeddings=False).ours.train()) == []
