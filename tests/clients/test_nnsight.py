"""nnsight reads and writes what layers give."""

import pytest
import torch
from nnsight import NNsight
from pairs import CLOSE, Pair
from torch.nn import functional as F

PLACES = [
    "model.encoder.layers.0.fc2",
    "model.encoder.layers.1.self_attn.out_proj",
    "model.decoder.layers.0.fc2",
    "model.decoder.layers.1.encoder_attn.out_proj",
    "model.decoder.layers.2.fc1",
    "lm_head",
]
names = pytest.mark.parametrize("name", PLACES)


def envoy(traced: NNsight, name: str):
    """Return nnsight's handle on the module of this name."""
    for part in name.split("."):
        traced = traced[int(part)] if part.isdigit() else getattr(traced, part)
    return traced


@names
@torch.no_grad()
def test_an_output_that_is_read_is_the_layer_applied_to_its_input(pair: Pair, batch, name):
    traced = NNsight(pair.ours)
    with traced.trace(**batch):
        layer_input = envoy(traced, name).input.save()
        layer_output = envoy(traced, name).output.save()
    layer = pair.ours.get_submodule(name)
    torch.testing.assert_close(layer_output, F.linear(layer_input, layer.weight, layer.bias), **CLOSE)


@names
@torch.no_grad()
def test_an_output_written_back_leaves_the_logits_unchanged(pair: Pair, batch, name):
    expected = pair.ours(**batch).logits
    traced = NNsight(pair.ours)
    with traced.trace(**batch):
        kept = envoy(traced, name).output.save()
    with traced.trace(**batch):
        envoy(traced, name).output = kept
        logits = traced.output.logits.save()
    assert torch.equal(logits, expected)


@names
@torch.no_grad()
def test_an_output_that_is_changed_gives_the_logits_of_marian(pair: Pair, batch, name):
    real = batch["decoder_attention_mask"].bool()
    base = pair.marian(**batch).logits[real]
    found = []
    for model in pair:
        traced = NNsight(model)
        with traced.trace(**batch):
            envoy(traced, name).output = envoy(traced, name).output * 0.5
            logits = traced.output.logits.save()
        found.append(logits[real])
    assert not torch.allclose(found[1], base, atol=1e-3)
    torch.testing.assert_close(*found, **CLOSE)
