"""Answers to the bit. That `hub.verify` compares them across processes is in test_hub.py."""

import importlib
import sys

import pytest
import torch
from helpers import ragged_batch, small_model

from vanilla_transformer.hub import probe


def test_a_digest_is_of_bits_shape_and_dtype():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert probe.digest(x) == probe.digest(x.clone()) == probe.digest(x.t().contiguous().t())
    next_value = x.clone()
    next_value.view(torch.int32)[1, 1] += 1
    others = [next_value, -x, x.t(), x.flatten(), x.view(torch.int32), x.bfloat16(), torch.tensor(1.0)]
    digests = {probe.digest(x), probe.digest(x, x), probe.digest(), *map(probe.digest, others)}
    assert len(digests) == len(others) + 3
    assert probe.digest(torch.tensor([0.0])) != probe.digest(torch.tensor([-0.0]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_weights_digest_sees_every_parameter(tied):
    model = small_model(tie_word_embeddings=tied)
    digests = {probe.weights_digest(model)}
    for parameter in model.parameters():
        parameter.data.view(-1).view(torch.int32)[-1] ^= 1
        digests.add(probe.weights_digest(model))
    assert len(digests) == len(list(model.parameters())) + 1


def test_models_answer_as_they_compute():
    model = small_model()
    ids = ragged_batch()["input_ids"][:1]
    with torch.no_grad():
        states = model.model(input_ids=ids, decoder_input_ids=ids).last_hidden_state
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        beam = model.generate(ids, num_beams=4)
    assert probe.base_answers(model.model, ids[0].tolist()) == {"last hidden state": probe.digest(states)}
    answers = probe.model_answers(model, ids[0].tolist())
    assert (answers["logits"], answers["beam translation"]) == (probe.digest(logits), beam[0].tolist())
    assert answers["generation config"]["pad_token_id"] == 1
    assert probe.config_answers(model.config)["decoder_layers"] == 3


def test_a_hidden_package_can_not_be_imported(monkeypatch):
    name = "vanilla_transformer.plots"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with (
        probe.hidden_package(),
        pytest.raises(ModuleNotFoundError, match="No module named 'vanilla_transformer.plots'"),
    ):
        importlib.import_module(name)
    assert importlib.import_module(name).__doc__
