"""Translating with a model: order, batches, modes, limits."""

import gc
import itertools
import math
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from helpers import SENTENCES, SHORT, texts, wordy_model
from transformers import LogitsProcessor

from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.data.tokenization import decode_batch, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import translate as decoding
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.translate import Translation, translate, translate_windows


def scores(results) -> list[float]:
    return [translation.score for translations in results for translation in translations]


def test_one_result_per_sentence_in_order(model, tokenizer):
    together = list(translate(model, tokenizer, SENTENCES, **SHORT))
    alone = [next(translate(model, tokenizer, [sentence], **SHORT)) for sentence in SENTENCES]
    assert texts(together) == texts(alone)
    assert scores(together) == pytest.approx(scores(alone), rel=1e-4)
    assert [len(translations) for translations in together] == [1] * len(SENTENCES)
    assert len({translation for (translation,) in together}) > 3


@pytest.mark.parametrize("num_beams", [1, 4])
def test_batch_neighbours_change_nothing(model, tokenizer, num_beams):
    # No sentence ends by itself here: each must stop at its own length + 50, whatever it is batched with.
    settings = {"num_beams": num_beams, "suppress_tokens": [tokenizer.eos_token_id]}
    sentences = SENTENCES[:4]
    expected = [next(translate(model, tokenizer, [sentence], **settings)) for sentence in sentences]
    for batch_tokens in (16, 1024):
        together = list(translate(model, tokenizer, sentences, batch_tokens=batch_tokens, **settings))
        assert texts(together) == texts(expected)


def test_a_batch_has_at_most_so_many_tokens(model, tokenizer, monkeypatch):
    shapes = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or generate(**inputs)
    )
    sentences = ["a dog", "two dogs run on the green grass", "a dog", "a cat", "a dog", "a dog runs", "a dog"]
    results = list(translate(model, tokenizer, sentences, batch_tokens=24, **SHORT))
    lengths = sorted((len(tokenizer(sentence)["input_ids"]) for sentence in sentences), reverse=True)
    assert sum(rows for rows, _ in shapes) == 7 and [length for _, length in shapes][0] == lengths[0]
    # 8 is what a shorter sentence counts as; one that is over the budget goes alone
    assert all(rows * max(length, 8) <= 24 or rows == 1 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) == 3
    assert texts(results)[0] == texts(results)[2] == texts(results)[4] == texts(results)[6] != [""]


def test_at_most_input_length_plus_50(model, tokenizer, monkeypatch):
    """A sentence's own length, whatever the length of its neighbours."""
    lengths = []
    pad = tokenizer.pad_token_id
    monkeypatch.setattr(
        decoding, "decode_batch", lambda _, ids: lengths.extend((ids != pad).sum(1).tolist()) or [""] * len(ids)
    )
    sentences = [sentence for sentence in SENTENCES if sentence.strip()]
    list(translate(model, tokenizer, sentences, suppress_tokens=[tokenizer.eos_token_id, pad]))
    source_lengths = [len(tokenizer(sentence)["input_ids"]) for sentence in sentences]
    assert sorted(lengths) == sorted(1 + length + 50 for length in source_lengths)  # 1 is the start token


def test_the_search_is_the_papers_unless_another_is_asked_for(model, tokenizer, caplog):
    """One beam is greedy search, whatever the penalty."""
    sentence, limit = "the cat sleeps all day long", 12
    inputs = tokenizer([sentence], return_tensors="pt")
    settings = {"num_beams": 4, "max_new_tokens": limit}
    library = model.generate(**inputs, **settings, length_penalty=2.0)
    paper = model.generate(
        **inputs,
        **settings,
        length_penalty=0.6,
        custom_generate=gnmt_beam_search,
        return_dict_in_generate=True,
    )
    ((found,),) = translate(model, tokenizer, [sentence], max_new_tokens=limit)
    assert found.text == decode_batch(tokenizer, paper.sequences)[0]
    assert found.score == pytest.approx(paper.sequences_scores.item())
    ((found,),) = translate(model, tokenizer, [sentence], **settings, length_penalty=2.0, search=None)
    assert found.text == decode_batch(tokenizer, library)[0] and math.isnan(found.score)

    greedy = decode_batch(tokenizer, model.generate(**inputs, num_beams=1, max_new_tokens=limit))
    for search in (gnmt_beam_search, None):
        settings = {"num_beams": 1, "length_penalty": 3.0, "max_new_tokens": limit, "search": search}
        assert texts(translate(model, tokenizer, [sentence], **settings)) == [greedy]
    assert not caplog.records  # transformers would name a penalty of greedy search


def test_sampling_is_the_librarys(model, tokenizer, monkeypatch):
    torch.manual_seed(5)
    sampled = translate(model, tokenizer, SENTENCES[:1], num_beams=1, do_sample=True, num_return_sequences=5, **SHORT)
    assert len({translation.text for translation in next(sampled)}) > 1
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    assert math.isnan(next(translate(model, tokenizer, SENTENCES[:1], num_beams=1, **SHORT))[0].score)


def test_a_sentence_that_is_too_long_is_cut_or_refused(model, tokenizer, caplog):
    sentences = ["a dog", "", "two dogs run on the green grass", "a cat"]
    ids = tokenizer(sentences[2])["input_ids"]
    cut = decode_batch(tokenizer, np.array([ids[:5]]))[0]
    found = list(translate(model, tokenizer, sentences, max_source_length=6, **SHORT))
    assert texts(found[2:3]) == texts(translate(model, tokenizer, [cut], **SHORT))
    assert f"sentence 3 has {len(ids)} tokens, more than max_source_length 6; the rest is cut off" in caplog.text
    refused = translate(model, tokenizer, sentences, max_source_length=6, too_long="refuse", **SHORT)
    with pytest.raises(UserError, match=r"^sentence 3 has .* split it into sentences, or raise max_source_length$"):
        list(refused)


def test_the_number_in_a_warning_counts_all_windows(model, tokenizer, caplog):
    windows = [["a dog"] * 2, ["a dog", "two dogs run on the green grass"]]
    list(translate_windows(model, tokenizer, windows, max_source_length=6, first_sentence=101, **SHORT))
    assert "sentence 104 has" in caplog.text


def test_several_translations_per_sentence(model, tokenizer):
    results = list(translate(model, tokenizer, SENTENCES, num_beams=4, num_return_sequences=3, **SHORT))
    best = list(translate(model, tokenizer, SENTENCES, num_beams=4, **SHORT))
    assert texts(translations[:1] for translations in results) == texts(best)
    assert results[2] == results[5] == [Translation("", 0.0)] * 3
    assert len(set(texts(results)[0])) == 3
    for translations in results:
        assert scores([translations]) == sorted(scores([translations]), reverse=True)


def test_blank_sentences_do_not_reach_the_model(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model, "generate", None)
    assert list(translate(model, tokenizer, ["", " ", "\t\n", "\u3000"])) == [[Translation("", 0.0)]] * 4
    assert list(translate(model, tokenizer, [])) == []


def test_reads_only_a_window_ahead(model, tokenizer, monkeypatch):
    monkeypatch.setattr(decoding, "WINDOW_SIZE", 3)
    read = []
    endless = (read.append(n) or SENTENCES[n % len(SENTENCES)] for n in itertools.count())
    translations = translate(model, tokenizer, endless, **SHORT)
    assert read == []
    first = list(itertools.islice(translations, 4))
    assert len(read) == 6
    assert texts(first) == texts(translate(model, tokenizer, SENTENCES[:4], **SHORT))


def test_model_is_left_as_it_was(model, tokenizer):
    before = model.generation_config.to_dict()
    expected = list(translate(model, tokenizer, SENTENCES, num_beams=2, **SHORT))
    assert not model.training
    model.train()  # with dropout 0.5, which must not touch translations
    try:
        translations = translate(model, tokenizer, SENTENCES, num_beams=2, **SHORT)
        results = [next(translations)]
        assert model.training and not torch.is_inference_mode_enabled()
        results += translations
        ids = torch.tensor([[5, 6, 2]])
        model(input_ids=ids, labels=ids).loss.backward()
        assert model.training
    finally:
        model.zero_grad()
        model.eval()
    assert results == expected
    assert model.generation_config.to_dict() == before


def test_mode_is_restored_after_an_error(model, tokenizer, monkeypatch):
    def fail(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", fail)
    model.train()
    try:
        with pytest.raises(UserError, match="too little memory for a batch of 1 sentences with num_beams 4; lower"):
            list(translate(model, tokenizer, ["a dog"]))
        assert model.training
    finally:
        model.eval()


def test_settings_not_given_are_the_models_own(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "num_beams", 3)
    own = list(translate(model, tokenizer, SENTENCES, num_return_sequences=3, **SHORT))
    assert own == list(translate(model, tokenizer, SENTENCES, num_beams=3, num_return_sequences=3, **SHORT))


def test_nothing_is_printed_and_nothing_warns(model, tokenizer, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(translate(model, tokenizer, SENTENCES))
        list(translate(model, tokenizer, SENTENCES, num_beams=4, num_return_sequences=2, length_penalty=0.6))
        gc.collect()
    assert capfd.readouterr() == ("", "")


def test_bfloat16(model, tokenizer, saved):
    half, _ = load(str(saved), device="cpu")
    results = list(translate(half.bfloat16(), tokenizer, SENTENCES, num_beams=2, **SHORT))
    assert len(results) == len(SENTENCES)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 1, "num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"num_beams": 0}, "num_beams"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"max_source_length": 1}, "max_source_length"),
        ({"too_long": "break"}, "too_long"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10**12}, "max_new_tokens"),
        ({"num_beams": 10_000}, "num_beams"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"num_beams": 900}, "num_beams is 900; it must be below the model's vocab_size"),
        ({"length_penalty": math.nan}, "length_penalty"),
        ({"length_penalty": math.inf}, "length_penalty"),
        ({"length_penalty": -1e6}, "length_penalty"),
    ],
)
def test_impossible_settings_are_refused_at_once(model, tokenizer, settings, named):
    with pytest.raises(UserError, match=named) as error:
        translate(model, tokenizer, ["a dog"], **settings)
    assert "\n" not in str(error.value)


def test_a_single_string_is_refused(model, tokenizer):
    with pytest.raises(TypeError, match="list of sentences"):
        translate(model, tokenizer, "a dog")


def test_ignored_positions_are_never_decoded(tokenizer):
    ids = tokenizer("a dog runs")["input_ids"]
    rows = np.array([[0, *ids, -100, -100], [-100, -100, 0, *ids]])
    assert decode_batch(tokenizer, rows) == decode_batch(tokenizer, torch.tensor(rows)) == ["a dog runs"] * 2


def test_a_source_in_another_normal_form_gets_that_of_the_training_text():
    text = "zwei Männer grüßen"
    tokenizer = train_tokenizer([text] * 3, 300)
    model = wordy_model(tokenizer)
    decomposed = unicodedata.normalize("NFD", text)
    (composed,), (same,) = translate(model, tokenizer, [text, decomposed], num_beams=1, max_new_tokens=5)
    assert composed == same


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("search", [gnmt_beam_search, None])
def test_a_limit_that_is_set_counts_alone(model, tokenizer, num_beams, search):
    """Also above the default, the source's length plus 50, as in the pipeline."""
    steps = []

    class Count(LogitsProcessor):
        def __call__(self, input_ids, scores):
            steps.append(input_ids.shape[1])
            return scores

    settings = {"num_beams": num_beams, "suppress_tokens": [tokenizer.eos_token_id], "max_new_tokens": 90}
    list(translate(model, tokenizer, ["a dog"], search=search, logits_processor=[Count()], **settings))
    assert len(steps) == 90


def test_what_is_no_text_is_named(model, tokenizer):
    with pytest.raises(UserError, match="sentence 2 has half of a surrogate pair; write the character whole"):
        list(translate(model, tokenizer, ["a", "b \ud800"]))
    with pytest.raises(TypeError, match="sentence 1 must be a string, not a NoneType"):
        list(translate(model, tokenizer, [None]))
