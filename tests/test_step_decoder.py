"""The incremental decoder against the model's own forward, step by step and behind the search."""

import pytest
import torch
from helpers import PAD, padded, random_ids, small_model
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer

from vanilla_transformer import generation_vanilla_transformer as beam_search
from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.step_decoder_vanilla_transformer import INITIAL_POSITIONS, IncrementalDecoder

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return small_model()


def sources(*lengths: int) -> dict[str, torch.Tensor]:
    input_ids, attention_mask = padded([random_ids(length) for length in lengths], max(lengths))
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def search(model, inputs, **settings):
    settings = {"num_beams": 4, "length_penalty": 0.6, "return_dict_in_generate": True, **settings}
    return model.generate(**inputs, custom_generate=gnmt_beam_search, **settings)


@torch.no_grad()
def test_each_step_is_the_forwards(model):
    """Beams that split and are dropped at random, past the room that the caches have at first."""
    beams, steps = 3, INITIAL_POSITIONS + 4
    inputs = sources(6, 2)
    memory = model.model.encoder(**inputs).last_hidden_state
    decoder = IncrementalDecoder(model, memory, inputs["attention_mask"], beams, steps)
    written = torch.zeros(2, beams, 1, dtype=torch.long)
    continued = torch.empty(2, beams, 0, dtype=torch.long)
    repeated = {name: tensor.repeat_interleave(beams, dim=0) for name, tensor in inputs.items()}
    for _ in range(steps):
        expected = F.log_softmax(model(**repeated, decoder_input_ids=written.flatten(0, 1)).logits[:, -1], dim=-1)
        found = decoder.step(written, continued).expand(-1, beams, -1)
        torch.testing.assert_close(found.flatten(0, 1), expected, **CLOSE)
        parents = torch.randint(beams, (2, beams))
        written, continued = (tensor.take_along_dim(parents[:, :, None], dim=1) for tensor in (written, continued))
        written = torch.cat([written, random_ids(2, beams, 1)], dim=2)
        continued = torch.cat([continued, (parents + torch.tensor([[0], [beams]]))[:, :, None]], dim=2)


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"position_convention": "fairseq"}])
@pytest.mark.parametrize("beams", [1, 5])
def test_the_search_finds_the_same_with_either_decoder(overrides, beams, monkeypatch):
    model = small_model(**overrides)
    inputs = sources(9, 4, 1)
    settings = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 40}
    found = search(model, inputs, **settings)
    monkeypatch.setattr(IncrementalDecoder, "supports", lambda model: False)
    expected = search(model, inputs, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.beam_indices, expected.beam_indices)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **CLOSE)


def test_a_batch_that_shrinks_gives_the_same(model, monkeypatch):
    inputs = sources(*range(1, 13))
    sizes = []
    real = IncrementalDecoder.step
    monkeypatch.setattr(
        IncrementalDecoder,
        "step",
        lambda self, written, *rest: sizes.append(len(written)) or real(self, written, *rest),
    )
    found = search(model, inputs, num_return_sequences=2)
    assert sizes[0] == 12 and len(set(sizes)) > 2 and sizes == sorted(sizes, reverse=True)
    monkeypatch.setattr(beam_search, "SHRINK_TO", 0.0)
    expected = search(model, inputs, num_return_sequences=2)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.beam_indices, expected.beam_indices)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **CLOSE)


def test_a_processor_that_counts_rows_keeps_them(model):
    class Counts(LogitsProcessor):
        rows = set()

        def __call__(self, input_ids, scores):
            self.rows |= {len(input_ids), len(scores)}
            return scores

    counts = Counts()
    inputs = sources(*range(1, 9))
    found = search(model, inputs, logits_processor=LogitsProcessorList([counts]))
    assert counts.rows == {32}
    assert torch.equal(found.sequences, search(model, inputs).sequences)


def test_best_continuations_are_those_of_one_large_search():
    for vocab_size in (8, 61, 1_000, 1_007):
        scores, log_probs = torch.randn(3, 4), torch.randn(3, 4, vocab_size).log_softmax(-1)
        values, places, tokens = beam_search.best_continuations(scores, log_probs, 8)
        expected, indices = (scores[:, :, None] + log_probs).flatten(1).topk(8)
        assert torch.equal(values, expected)
        assert torch.equal(places * vocab_size + tokens, indices)


def test_bfloat16_is_finite_and_close(model):
    inputs = sources(7, 3)
    half = small_model(dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    scores = [search(each, inputs, max_new_tokens=10).sequences_scores for each in (model, half)]
    torch.testing.assert_close(*scores, rtol=0.05, atol=0.05)


def test_the_best_sequence_is_streamed_when_it_is_known(model):
    class Collects(TextStreamer):
        def __init__(self):
            self.puts, self.ended = [], False

        def put(self, value):
            self.puts.append(value)

        def end(self):
            self.ended = True

    streamer = Collects()
    inputs = sources(5)
    found = search(model, inputs, final_streamer=streamer)
    assert streamer.puts[0].shape == (1, 1) and streamer.ended
    assert torch.equal(torch.cat([value.flatten() for value in streamer.puts]), found.sequences[0])
    assert PAD not in found.sequences
    with pytest.raises(ValueError, match="num_return_sequences is 2, but final_streamer takes one"):
        search(model, inputs, final_streamer=streamer, num_return_sequences=2)
