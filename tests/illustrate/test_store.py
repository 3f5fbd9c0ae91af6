"""What the page keeps of the reader's choices."""

import torch
from helpers import wordy_model

SENTENCE = "nine hundred and ninety-nine thousand, eight hundred and eighty-eight"
PRESSES = [[5, 9], [2, 8], [4, 7]]  # steps and tokens


@torch.no_grad()
def test_the_decoder_goes_on_from_the_token_that_was_pressed(run_engine, engine_model, numbers_tokenizer) -> None:
    """As far as the search goes; only what was pressed, and is still there, counts as pressed."""
    model = wordy_model(numbers_tokenizer)
    model.generation_config.eos_token_id = None
    source = numbers_tokenizer(SENTENCE, return_tensors="pt").input_ids
    (results,) = run_engine({"run": "press", **engine_model(model), "sentence": SENTENCE, "presses": PRESSES})
    assert [result["pressed"] for result in results] == [[5], [2], [2, 4]]
    assert results[2]["ids"][2] == 8
    for (step, token), result in zip(PRESSES, results, strict=True):
        ids = result["ids"]
        assert ids[step] == token
        assert len(ids) == source.shape[1] + 50 > 60
        read = torch.tensor([[model.config.decoder_start_token_id, *ids[:-1]]])
        likeliest = model(input_ids=source, decoder_input_ids=read).logits[0].argmax(-1).tolist()
        assert ids[step + 1 :] == likeliest[step + 1 :]
