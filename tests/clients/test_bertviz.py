"""bertviz draws the attention weights."""

import json
import re

import torch
from bertviz import head_view, model_view
from pairs import Pair, make_batch, make_tokenizer


def attention_in(view) -> list[dict]:
    """Return the data that a view's script draws."""
    found = re.search(r"const params = (\{.*?\}); // HACK", view.data) or re.search(r"PYTHON_PARAMS = (.*)", view.data)
    return json.loads(found[1])["attention"]


def test_both_views_draw_the_weights_that_marian_has(pair: Pair):
    batch, tokenizer = make_batch(1), make_tokenizer()
    words = {
        "encoder_tokens": tokenizer.convert_ids_to_tokens(batch["input_ids"][0]),
        "decoder_tokens": tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0]),
    }
    for view in (head_view, model_view):
        drawn = []
        for model in pair:
            model.set_attn_implementation("eager")
            with torch.no_grad():
                outputs = model(**batch, output_attentions=True)
            arguments = {
                "encoder_attention": outputs.encoder_attentions,
                "decoder_attention": outputs.decoder_attentions,
                "cross_attention": outputs.cross_attentions,
            }
            drawn.append(attention_in(view(**arguments, **words, html_action="return")))
        assert [part["name"] for part in drawn[0]] == ["Encoder", "Decoder", "Cross"]
        for ours, marian in zip(*drawn, strict=True):
            assert ours["left_text"] == marian["left_text"] and ours["right_text"] == marian["right_text"]
            weights = torch.tensor(ours["attn"])
            torch.testing.assert_close(weights, torch.tensor(marian["attn"]), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
