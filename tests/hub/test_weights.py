"""Digests of tensors and models."""

import pytest
import torch
from helpers import small_model

from vanilla_transformer.hub.weights import tensor_digest, weights_digest


def test_a_digest_depends_on_bits_shape_and_dtype():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert tensor_digest(x) == tensor_digest(x.clone()) == tensor_digest(x.t().contiguous().t())
    next_value = x.clone()
    next_value.view(torch.int32)[1, 1] += 1
    others = [next_value, -x, x.t(), x.flatten(), x.view(torch.int32), x.bfloat16(), torch.tensor(1.0)]
    digests = {tensor_digest(x), tensor_digest(x, x), tensor_digest(), *map(tensor_digest, others)}
    assert len(digests) == len(others) + 3
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_weights_digest_depends_on_every_parameter(tied):
    model = small_model(tie_word_embeddings=tied)
    digests = {weights_digest(model)}
    for parameter in model.parameters():
        parameter.data.view(-1).view(torch.int32)[-1] ^= 1
        digests.add(weights_digest(model))
    assert len(digests) == len(list(model.parameters())) + 1
