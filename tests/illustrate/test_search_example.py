"""The sentence that shows what beam search is for."""

import pytest
import torch
from helpers import wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.illustrate import search_example
from vanilla_transformer.illustrate.search_example import find_search_example
from vanilla_transformer.inference.translate import translate

SOURCES = ["forty-two", "seven thousand", "one hundred and eleven", "nine", "two thousand and four", "fifty " * 60]
PAIRS = [(source, f"<{source}>") for source in SOURCES]


MOST_TOKENS = 100


@pytest.fixture(autouse=True)
def _long_translations(monkeypatch):
    """What was never trained ends no sentence."""
    monkeypatch.setattr(search_example, "MOST_TOKENS", MOST_TOKENS)
    monkeypatch.setattr(search_example, "CUT", {"max_new_tokens": MOST_TOKENS + 1})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SOURCES * 2, 290)


def test_the_two_searches_differ_and_the_scores_say_why(tokenizer):
    model = wordy_model(tokenizer)
    example = find_search_example(model, tokenizer, PAIRS)
    assert example["source"] in SOURCES and len(tokenizer(example["source"])["input_ids"]) <= MOST_TOKENS
    ((greedy,),) = translate(model, tokenizer, [example["source"]], num_beams=1)
    ((beam,),) = translate(model, tokenizer, [example["source"]], num_beams=4, length_penalty=0.6)
    assert (example["greedy"], example["beam"]) == (greedy.text, beam.text) and greedy.text != beam.text
    assert example["beamScore"] == pytest.approx(beam.score, abs=1e-3)
    assert example["greedyScore"] < example["beamScore"]
    # one beam has no length penalty; the score on the page has, to be comparable
    lengths = range(1, 80)
    assert any(
        example["greedyScore"] == pytest.approx(greedy.score / ((5 + length) / 6) ** 0.6, abs=1e-3)
        for length in lengths
    )
    assert (example["numBeams"], example["lengthPenalty"]) == (4, 0.6)
    assert find_search_example(model, tokenizer, PAIRS) == example


def test_a_source_whose_reference_only_the_beam_finds_comes_first(tokenizer):
    model = wordy_model(tokenizer)
    sources = SOURCES[:-1]
    greedy = [best.text for (best,) in translate(model, tokenizer, sources, num_beams=1)]
    beam = [best.text for (best,) in translate(model, tokenizer, sources, num_beams=4, length_penalty=0.6)]
    by_beam = dict(zip(sources, beam, strict=True))
    different = [source for source, one, other in zip(sources, greedy, beam, strict=True) if one != other]
    assert len(different) > 1
    first = find_search_example(model, tokenizer, [(source, "?") for source in sources])["source"]
    for wanted in set(different) - {first}:
        pairs = [(source, by_beam[source] if source == wanted else "?") for source in sources]
        assert find_search_example(model, tokenizer, pairs)["source"] == wanted


def test_a_translation_in_whole_characters_is_preferred(tokenizer, monkeypatch):
    found = {
        source: {"greedy": greedy, "beam": beam}
        for source, greedy, beam in (("a", "x\ufffd", "y"), ("b", "x", "y\ufffd"), ("c", "x", "y"), ("d", "z", "y"))
    }
    different = [search_example._Candidate(1, source, "?") for source in found]
    monkeypatch.setattr(search_example, "_find_differences", lambda *arguments: different)
    monkeypatch.setattr(search_example, "_compare", lambda model, tokenizer, source: found[source])
    assert find_search_example(wordy_model(tokenizer), tokenizer, PAIRS) == {"greedy": "x", "beam": "y"}


def test_a_long_translation_is_not_drawn(tokenizer, monkeypatch):
    monkeypatch.setattr(search_example, "MOST_TOKENS", 20)
    assert find_search_example(wordy_model(tokenizer), tokenizer, PAIRS) is None


def test_there_may_be_none(tokenizer):
    model = wordy_model(tokenizer)
    assert find_search_example(model, tokenizer, []) is None
    assert find_search_example(model, tokenizer, PAIRS[-1:]) is None  # too long for a tree
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all tokens are equally likely, so no hypothesis is clearly better
    assert find_search_example(model, tokenizer, PAIRS) is None
