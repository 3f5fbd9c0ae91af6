"""optimum-quanto quantizes the linear layers and the embeddings."""

import pytest
import torch
from optimum.quanto import freeze, qint4, qint8, quantization_map, quantize, requantize
from pairs import CLOSE, Pair, assert_same_translations, make_batch, make_labels, make_pair, translations

KINDS = {"int8": qint8, "int4": qint4}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@kinds
def test_a_quantized_model_gives_the_logits_and_translations_of_marian(pair: Pair, batch, kind):
    real, base = batch["decoder_attention_mask"].bool(), pair.marian(**batch).logits
    logits, found = [], []
    for model in pair:
        quantize(model, weights=kind)
        freeze(model)
        with torch.no_grad():
            logits.append(model(**batch).logits[real])
        found.append(translations(model, batch))
    assert not torch.equal(logits[1], base[real])
    torch.testing.assert_close(*logits, **CLOSE)
    assert_same_translations(*found)


def test_the_training_loss_and_its_gradients_before_freezing_are_those_of_marian(pair: Pair):
    """Quantization-aware training: the weights stay parameters and are rounded in each pass."""
    batch = make_batch(3)
    losses, gradients = [], []
    for model in pair:
        quantize(model, weights=qint8)
        loss = model.train()(**batch, labels=make_labels(batch)).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(model.model.decoder.layers[1].fc2.weight.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(*gradients, **CLOSE)


def test_quantized_weights_are_saved_and_loaded(pair: Pair):
    batch, tied = make_batch(3), pair.ours.config.tie_word_embeddings
    quantize(pair.ours, weights=qint8)
    freeze(pair.ours)
    weights, kinds_by_name = pair.ours.state_dict(), quantization_map(pair.ours)
    loaded = make_pair(tie_word_embeddings=tied).ours
    requantize(loaded, weights, kinds_by_name, device=torch.device("cpu"))
    assert_same_translations(translations(loaded, batch), translations(pair.ours, batch))
