"""torchao quantizes the linear layers."""

import copy
import warnings

import pytest
import torch
from pairs import (
    CLOSE,
    Pair,
    assert_same_translations,
    differ,
    make_batch,
    make_labels,
    make_pair,
    translations,
)
from torch import nn
from transformers import TorchAoConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )

KINDS = {
    "int8 weights": Int8WeightOnlyConfig,
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig,
    "int4 weights": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)


def without_output_layer(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "lm_head" not in name


@kinds
@pytest.mark.parametrize("chosen", [is_linear, without_output_layer])
def test_a_quantized_model_gives_the_logits_and_translations_of_marian(pair: Pair, batch, kind, chosen):
    real, base = batch["decoder_attention_mask"].bool(), pair.marian(**batch).logits
    logits, found = [], []
    for model in pair:
        quantize_(model, kind(), filter_fn=chosen)
        with torch.no_grad():
            logits.append(model(**batch).logits[real])
        found.append(translations(model, batch))
    assert not torch.equal(logits[1], base[real])
    torch.testing.assert_close(*logits, **CLOSE)
    assert_same_translations(*found)


@pytest.mark.parametrize("chosen", [is_linear, without_output_layer])
def test_the_loss_of_a_quantized_model_is_that_of_marian_in_both_modes(pair: Pair, chosen):
    batch = make_batch(3)
    for training in (False, True):
        losses = []
        for model in make_pair(tie_word_embeddings=pair.ours.config.tie_word_embeddings):
            quantize_(model, Int8WeightOnlyConfig(), filter_fn=chosen)
            losses.append(float(model.train(training)(**batch, labels=make_labels(batch)).loss.detach()))
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_model_quantized_while_loading_is_saved_and_loaded(pair: Pair, tmp_path):
    """MarianMT, the reference, is quantized in memory: loaded so its positions are wrong, and it can't be loaded again.

    transformers leaves the output layer as it is.
    """
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))
    pair.ours.save_pretrained(tmp_path / "float")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    quantized = type(pair.ours).from_pretrained(tmp_path / "float", quantization_config=config)
    found = translations(quantized, batch)
    quantized.save_pretrained(tmp_path / "int8")
    loaded = type(pair.ours).from_pretrained(tmp_path / "int8")
    assert_same_translations(translations(loaded, batch), found)

    marian = copy.deepcopy(pair.marian)
    quantize_(marian, Int8WeightOnlyConfig(), filter_fn=without_output_layer)
    assert differ(translations(marian, batch), base)
    assert_same_translations(found, translations(marian, batch))
