"""The two models that the other files compare are the same function, and its translations depend on the source."""

import torch
from pairs import CLOSE, assert_same_translations, make_batch, places, to_marian, translations


@torch.no_grad()
def test_both_models_and_the_export_give_the_same_logits(pair, batch):
    expected = pair.ours(**batch).logits
    for marian in (pair.marian, to_marian(pair.ours)):
        real = batch["decoder_attention_mask"].bool()
        torch.testing.assert_close(marian(**batch).logits[real], expected[real], **CLOSE)


def test_both_models_and_the_export_give_the_same_translations(pair, batch):
    expected = translations(pair.ours, batch)
    for marian in (pair.marian, to_marian(pair.ours)):
        assert_same_translations(translations(marian, batch), expected)


def test_translations_depend_on_the_source(pair):
    for search, (ids, _) in translations(pair.ours, make_batch(3)).items():
        assert len({tuple(row) for row in ids.tolist()}) >= 3, search


def test_both_models_have_the_same_linear_layers_and_norms_with_equal_weights(pair):
    assert sorted(places(pair.ours)) == sorted(places(pair.marian))
    ours, marian = pair.ours.state_dict(), pair.marian.state_dict()
    assert marian.keys() - ours.keys() == {
        "final_logits_bias",
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_positions.weight",
    }
    assert all(torch.equal(marian[name], weight) for name, weight in ours.items())
