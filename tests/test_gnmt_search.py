"""The paper's search against all sequences there are, against a plain one with lists, and against the library's."""

import itertools

import pytest
import torch
from helpers import EOS, PAD, padded, random_ids, small_config
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MarianConfig,
    MarianMTModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vanilla_transformer import VanillaTransformerForConditionalGeneration, gnmt_beam_search
from vanilla_transformer.generation_vanilla_transformer import gnmt_length_penalty

START, VOCAB = 0, 8
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> VanillaTransformerForConditionalGeneration:
    """A model with 8 types that is unsure of each step and likes to end sometimes."""
    torch.manual_seed(1)
    model = VanillaTransformerForConditionalGeneration(small_config(vocab_size=VOCAB)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3 if "q_proj" in name or "k_proj" in name else 1.5)
    model.generation_config.suppress_tokens = [PAD]  # so that it can only be padding
    return model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Four sources of 9, 5, 2 and 1 tokens with their padding."""
    rows = [torch.cat([random_ids(n - 1, vocab_size=VOCAB), torch.tensor([EOS])]) for n in (9, 5, 2, 1)]
    input_ids, attention_mask = padded(rows, 9)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def search(model, inputs: dict[str, torch.Tensor], **settings):
    settings = {"num_beams": 4, "length_penalty": 0.6, **settings}
    return model.generate(
        **inputs, custom_generate=gnmt_beam_search, return_dict_in_generate=True, output_scores=True, **settings
    )


def row_of(inputs: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """One source, without its padding."""
    length = int(inputs["attention_mask"][index].sum())
    return {name: tensor[index : index + 1, :length] for name, tensor in inputs.items()}


def tokens_of(sequence: torch.Tensor) -> list[int]:
    """What was generated, up to `</s>` and with it, or up to the padding."""
    generated = sequence.tolist()[1:]
    if EOS in generated:
        return generated[: generated.index(EOS) + 1]
    return generated[: generated.index(PAD)] if PAD in generated else generated


@torch.no_grad()
def log_probs_after(model, inputs: dict[str, torch.Tensor], written: list[int]) -> torch.Tensor:
    """log P(next token | source, tokens so far), from a forward pass over all of it: [vocabulary]."""
    log_probs = model(**inputs, decoder_input_ids=torch.tensor([[START, *written]])).logits[0, -1].log_softmax(-1)
    log_probs[PAD] = -torch.inf
    return log_probs


def plain_search(model, inputs: dict[str, torch.Tensor], beams: int, alpha: float, limit: int):
    """Beam search with lists, for one source, always to the limit: scores and tokens of what has ended, best first."""
    running, ended = [(0.0, [])], []
    for length in range(1, limit + 1):
        continued = [
            (score + log_prob, [*written, token])
            for score, written in running
            for token, log_prob in enumerate(log_probs_after(model, inputs, written).tolist())
        ]
        continued.sort(reverse=True)
        ends = [tokens[-1] == EOS or length == limit for _, tokens in continued]
        ended += [
            (score / ((5 + length) / 6) ** alpha, tokens)
            for (score, tokens), end in zip(continued[:beams], ends, strict=False)
            if end
        ]
        running = [hypothesis for hypothesis, end in zip(continued, ends, strict=True) if not end][:beams]
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5, -0.7])
def test_with_beams_enough_it_finds_the_best_of_all_sequences(model, inputs, alpha):
    """Sequences of at most 3 tokens: all that end with </s>, or that have 3."""
    source = row_of(inputs, 1)
    scored = []
    for length in (1, 2, 3):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if PAD in tokens or EOS in tokens[:-1] or (length < 3 and tokens[-1] != EOS):
                continue
            log_prob = sum(
                log_probs_after(model, source, list(tokens[:i]))[token].item() for i, token in enumerate(tokens)
            )
            scored.append((log_prob / ((5 + length) / 6) ** alpha, list(tokens)))
    scored.sort(reverse=True)
    found = search(model, source, num_beams=VOCAB**2, num_return_sequences=20, max_new_tokens=3, length_penalty=alpha)
    assert [tokens_of(sequence) for sequence in found.sequences] == [tokens for _, tokens in scored[:20]]
    torch.testing.assert_close(found.sequences_scores, torch.tensor([score for score, _ in scored[:20]]), **CLOSE)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0, -0.5])
@pytest.mark.parametrize(("beams", "wanted"), [(1, 1), (2, 1), (4, 1), (4, 4), (5, 3)])
def test_it_stops_when_nothing_better_can_come(model, inputs, beams, wanted, alpha):
    """The plain search goes on to the limit: what stops earlier has to find the same all the same."""
    limit = 7
    settings = {"num_beams": beams, "num_return_sequences": wanted, "length_penalty": alpha, "max_new_tokens": limit}
    found = search(model, inputs, **settings)
    for index in range(4):
        # One beam is greedy search, where the first end is the end.
        expected = plain_search(model, row_of(inputs, index), beams, alpha if beams > 1 else 0.0, limit)[:wanted]
        rows = slice(index * wanted, (index + 1) * wanted)
        assert [tokens_of(sequence) for sequence in found.sequences[rows]] == [tokens for _, tokens in expected]
        torch.testing.assert_close(
            found.sequences_scores[rows], torch.tensor([score for score, _ in expected]), **CLOSE
        )


def test_it_stops_early(model, inputs):
    """With a penalty of 0 nothing gets better by going on, and a sure end is the end."""

    class EndAfterThree(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > 3:
                scores = scores.clone()
                scores[:, EOS] = 0.0
            return scores

    found = search(model, inputs, length_penalty=0.0, logits_processor=LogitsProcessorList([EndAfterThree()]))
    assert len(found.scores) < 9, "59 tokens would be the limit"


@pytest.mark.parametrize("beams", [2, 4])
def test_without_a_penalty_it_is_the_librarys_search(model, inputs, beams):
    settings = {"num_beams": beams, "num_return_sequences": 2, "max_new_tokens": 9, "length_penalty": 0.0}
    ours = search(model, inputs, **settings)
    library = model.generate(
        **inputs, early_stopping="never", return_dict_in_generate=True, output_scores=True, **settings
    )
    assert [tokens_of(row) for row in ours.sequences] == [tokens_of(row) for row in library.sequences]
    torch.testing.assert_close(ours.sequences_scores, library.sequences_scores, **CLOSE)


def test_scores_follow_from_the_steps_scores_and_the_formula(model, inputs):
    """As users of `compute_transition_scores` have them."""
    found = search(model, inputs, num_return_sequences=3, max_new_tokens=8)
    transitions = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    lengths = (found.beam_indices >= 0).sum(dim=1)
    assert lengths.tolist() == [len(tokens_of(sequence)) for sequence in found.sequences]
    log_probs = transitions.masked_fill(found.beam_indices < 0, 0.0).sum(dim=1)
    torch.testing.assert_close(found.sequences_scores, log_probs / gnmt_length_penalty(lengths, 0.6), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neighbours_and_padding_change_nothing(model, inputs, side):
    rows = [row_of(inputs, index)["input_ids"][0] for index in range(4)]
    input_ids, attention_mask = padded(rows, 12, side)
    together = search(model, {"input_ids": input_ids, "attention_mask": attention_mask})
    for index in range(4):
        alone = search(model, row_of(inputs, index))
        assert tokens_of(together.sequences[index]) == tokens_of(alone.sequences[0])
        torch.testing.assert_close(together.sequences_scores[index], alone.sequences_scores[0], **CLOSE)


def test_the_limit_is_that_of_each_source_and_of_the_caller(model, inputs):
    """Where </s> can't come, a hypothesis ends at its limit."""

    def lengths(**settings) -> list[int]:
        never = {"suppress_tokens": [EOS, PAD]}
        return [len(tokens_of(sequence)) for sequence in search(model, inputs, **never, **settings).sequences]

    assert lengths() == [59, 55, 52, 51]
    assert lengths(tokens_beyond_source=2) == [11, 7, 4, 3]
    assert lengths(tokens_beyond_source=2, max_new_tokens=5) == [5, 5, 4, 3]
    assert lengths(tokens_beyond_source=None, max_new_tokens=6) == [6, 6, 6, 6]
    assert lengths(max_length=6) == [5, 5, 5, 5]


def test_processors_criteria_and_prefixes_are_obeyed(model, inputs):
    found = search(model, inputs, no_repeat_ngram_size=1, max_new_tokens=6)
    assert all(len(set(tokens_of(row))) == len(tokens_of(row)) for row in found.sequences)

    allowed = [[4, EOS], [5, EOS], [6, EOS], [7, EOS]]
    found = search(model, inputs, prefix_allowed_tokens_fn=lambda batch_id, ids: allowed[batch_id], max_new_tokens=5)
    for row, tokens in zip(found.sequences, allowed, strict=True):
        assert set(tokens_of(row)) <= set(tokens)

    class EndsWithFive(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == 5

    stop = StoppingCriteriaList([EndsWithFive()])
    found = search(model, inputs, stopping_criteria=stop, suppress_tokens=[EOS], max_new_tokens=9, num_beams=6)
    for row in found.sequences:
        tokens = [token for token in row.tolist()[1:] if token != PAD]
        assert 5 not in tokens[:-1]


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_any_cache_gives_the_same(model, inputs, settings):
    expected, found = (search(model, inputs, max_new_tokens=8, **changes) for changes in ({}, settings))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **CLOSE)


def test_a_prompt_is_continued_and_not_counted(model, inputs):
    prompt = torch.tensor([[START, 5, 6]]).repeat(4, 1)
    found = search(model, inputs, decoder_input_ids=prompt, max_new_tokens=4)
    assert (found.sequences[:, :3] == prompt).all() and found.sequences.shape[1] <= 7
    assert (found.beam_indices >= 0).sum(dim=1).max() <= 4


def test_ids_alone_unless_asked_and_attentions_on_request(model, inputs):
    ids = model.generate(**inputs, custom_generate=gnmt_beam_search, num_beams=3, max_new_tokens=5)
    model.set_attn_implementation("eager")
    found = search(model, inputs, num_beams=3, max_new_tokens=5, output_attentions=True, output_logits=True)
    model.set_attn_implementation("sdpa")
    assert torch.equal(ids, found.sequences)
    steps = len(found.scores)
    assert len(found.logits) == len(found.cross_attentions) == len(found.decoder_attentions) == steps
    assert found.cross_attentions[0][0].shape == (12, 4, 1, 9)


def test_sampling_is_refused(model, inputs):
    with pytest.raises(ValueError, match="do_sample is set, but gnmt_beam_search does not sample"):
        search(model, inputs, do_sample=True)


def test_another_models_source_is_repeated_for_each_beam(inputs):
    """MarianMT's, say: its inputs are expanded as the library does it."""
    marian = MarianMTModel(
        MarianConfig(
            vocab_size=VOCAB,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=64,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=START,
        )
    ).eval()
    settings = {"num_beams": 3, "max_new_tokens": 7, "length_penalty": 0.0}
    found = search(marian, inputs, **settings)
    library = marian.generate(**inputs, **settings, early_stopping="never")
    assert [tokens_of(row) for row in found.sequences] == [tokens_of(row) for row in library]
