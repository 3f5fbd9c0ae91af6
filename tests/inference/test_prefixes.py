"""Translations that begin with a given text: in every search, in every batch, with the score of the whole."""

import math
import unicodedata

import pytest
import torch
from helpers import SENTENCES, texts, wordy_model
from transformers import LogitsProcessor, LogitsProcessorList

from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.data.tokenization import dictionary_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import translate as decoding
from vanilla_transformer.inference.prefixes import TargetPrefix, TargetPrefixLogitsProcessor
from vanilla_transformer.inference.translate import translate

CLOSE = {"rel": 1e-4}
SHORT = {"max_new_tokens": 14}
# One for each of SENTENCES: whole words, a part of a word, none, blanks, a character of four bytes.
PREFIXES = ["two dogs", "the gre", "a", "", "  \u2028", "cat", "\U0001f415 a"]
SEARCHES = {
    "paper": {"num_beams": 4, "length_penalty": 0.6},
    "greedy": {"num_beams": 1},
    "generate": {"num_beams": 4, "search": None},
    "generate greedy": {"num_beams": 1, "search": None},
    "samples": {"num_beams": 1, "do_sample": True, "top_k": 3, "top_p": 0.9, "temperature": 0.7},
    "beams of samples": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_each_translation_begins_with_its_prefix(model, tokenizer, search):
    settings = SEARCHES[search] | SHORT
    settings["num_return_sequences"] = 1 if search in ("greedy", "generate greedy") else 3
    found = list(translate(model, tokenizer, SENTENCES, target_prefix=PREFIXES, **settings))
    for sentence, prefix, translations in zip(SENTENCES, PREFIXES, texts(found), strict=True):
        assert len(translations) == settings["num_return_sequences"]
        assert all(text.startswith(prefix) for text in translations)
        if not sentence.strip():
            assert set(translations) == {prefix}
        elif prefix:  # not only the prefix
            assert any(text != prefix for text in translations)


@pytest.mark.parametrize("search", ["paper", "greedy", "generate"])
def test_neighbours_with_other_prefixes_change_nothing(model, tokenizer, search):
    settings = SEARCHES[search] | SHORT
    for batch_tokens in (30, 1024):
        together = translate(
            model, tokenizer, SENTENCES, target_prefix=iter(PREFIXES), batch_tokens=batch_tokens, **settings
        )
        for sentence, prefix, (found,) in zip(SENTENCES, PREFIXES, together, strict=True):
            ((alone,),) = translate(model, tokenizer, [sentence], target_prefix=prefix, **settings)
            assert found.text == alone.text
            assert found.score == pytest.approx(alone.score, **CLOSE, nan_ok=True)


def plain_search(model, tokenizer, sentence, prefix, beams, alpha, limit):
    """Beam search with lists that keeps only what begins with the prefix: penalized score and ids of what has ended."""
    source = tokenizer([sentence], return_tensors="pt")
    forced, eos = tokenizer(prefix, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    running, ended = [(0.0, [])], []
    for length in range(1, limit + 1):
        continued = []
        for score, written in running:
            with torch.no_grad():
                logits = model(**source, decoder_input_ids=torch.tensor([[0, *written]])).logits[0, -1]
            log_probs = logits.log_softmax(-1).tolist()
            allowed = forced[length - 1 : length] or range(len(log_probs))
            continued += [(score + log_probs[token], [*written, token]) for token in allowed]
        continued.sort(reverse=True)
        penalty = ((5 + length) / 6) ** alpha
        for score, written in continued[:beams]:
            if written[-1] == eos or length == limit:
                ended.append((score / penalty, written))
        running = [(score, written) for score, written in continued if written[-1] != eos][:beams]
    return sorted(ended, reverse=True)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_is_a_plain_one_among_what_begins_with_the_prefix(model, tokenizer, beams):
    """Scores are those of whole translations, the prefix included, although it is forced."""
    alpha = 0.6 if beams > 1 else 0.0
    settings = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 9, "length_penalty": 0.6}
    for sentence, prefix in [("a dog runs", "the cat"), ("a cat", "dog"), ("two dogs run", "")]:
        (found,) = translate(model, tokenizer, [sentence], target_prefix=prefix, **settings)
        expected = plain_search(model, tokenizer, sentence, prefix, beams, alpha, 9)[:beams]
        assert [each.text for each in found] == [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in expected]
        assert [each.score for each in found] == pytest.approx([score for score, _ in expected], **CLOSE)


@pytest.mark.parametrize("search", [gnmt_beam_search, None])
def test_a_greedy_translations_own_beginning_changes_neither_it_nor_its_score(model, tokenizer, search):
    odd = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).isascii()]  # parts of characters
    settings = {"num_beams": 1, "max_new_tokens": 12, "suppress_tokens": odd}
    checked = 0
    for sentence in filter(str.strip, SENTENCES):
        ids = model.generate(**tokenizer(sentence, return_tensors="pt"), **settings)[0].tolist()
        beginnings = [ids[1 : 1 + length] for length in range(1, 6)]
        prefixes = [tokenizer.decode(beginning) for beginning in beginnings]
        again = [tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in prefixes]
        prefixes = [prefix for prefix, *same in zip(prefixes, beginnings, again, strict=True) if same[0] == same[1]]
        ((free,),) = translate(model, tokenizer, [sentence], search=search, **settings)
        again = translate(
            model, tokenizer, [sentence] * len(prefixes), target_prefix=prefixes, search=search, **settings
        )
        for (found,) in again:
            checked += 1
            assert found.text == free.text and found.score == pytest.approx(free.score, **CLOSE, nan_ok=True)
    assert checked > 3


@pytest.mark.parametrize("search", [gnmt_beam_search, None])
def test_a_prefix_counts_for_the_length_limit(model, tokenizer, search):
    prefix = "two dogs run"
    length = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    settings = {"search": search, "num_beams": 4, "num_return_sequences": 4, "target_prefix": prefix}
    (found,) = translate(model, tokenizer, ["a cat"], max_new_tokens=length + 1, **settings)
    for translation in found:
        assert translation.text.startswith(prefix) and not translation.score < -1e8
        assert (
            len(tokenizer(translation.text, add_special_tokens=False)["input_ids"]) <= length + 4
        )  # bytes of a character
    assert len({translation.text for translation in found}) > 1
    with pytest.raises(UserError, match=f"sentence 2, 'two dogs run', has {length} tokens .* at most {length}; give"):
        list(translate(model, tokenizer, ["", "a cat"], max_new_tokens=length, **settings))


@pytest.mark.parametrize("settings", [{}, {"search": None}, {"do_sample": True, "num_beams": 1}])
def test_a_prefix_longer_than_the_source_and_50_is_refused(model, tokenizer, settings):
    source = len(tokenizer("a cat")["input_ids"])
    prefix = "\u2028" * 40  # three tokens each
    with pytest.raises(UserError, match=rf"has 120 tokens and needs .* at most {source + 50}; give a shorter one$"):
        list(translate(model, tokenizer, ["a cat"], target_prefix=prefix, **settings))


def test_one_text_is_for_all_sentences(model, tokenizer):
    found = texts(translate(model, tokenizer, SENTENCES, target_prefix="cat", **SHORT))
    assert found == texts(translate(model, tokenizer, SENTENCES, target_prefix=["cat"] * len(SENTENCES), **SHORT))
    assert list(translate(model, tokenizer, SENTENCES, target_prefix="", **SHORT)) == list(
        translate(model, tokenizer, SENTENCES, **SHORT)
    )


def test_a_forbidden_token_is_forced_all_the_same(model, tokenizer):
    ids = tokenizer("cat cat cat", add_special_tokens=False)["input_ids"]
    for settings in ({"suppress_tokens": ids}, {"no_repeat_ngram_size": 1}, {"bad_words_ids": [ids[:1]]}):
        for search in (gnmt_beam_search, None):
            ((found,),) = translate(
                model, tokenizer, ["a dog"], target_prefix="cat cat cat", search=search, **settings, **SHORT
            )
            assert found.text.startswith("cat cat cat") and not math.isinf(found.score)


def test_a_processor_of_the_callers_is_asked_too(model, tokenizer):
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor(tokenizer("dog")["input_ids"][:1]), -torch.inf)

    processors = LogitsProcessorList([Forbid()])
    found = translate(model, tokenizer, SENTENCES, target_prefix="cat", logits_processor=processors, **SHORT)
    assert all(text.startswith("cat") and "d" not in text for (text,) in texts(found))
    assert len(processors) == 1


def test_windows_and_numbers_go_on(model, tokenizer, monkeypatch):
    monkeypatch.setattr(decoding, "WINDOW_SIZE", 2)
    found = texts(translate(model, tokenizer, SENTENCES, target_prefix=PREFIXES, **SHORT))
    assert all(text.startswith(prefix) for (text,), prefix in zip(found, PREFIXES, strict=True))
    for count, message in ((6, "no target prefix for sentence 7;"), (8, "more target prefixes than sentences, 7;")):
        with pytest.raises(UserError, match=message):
            list(translate(model, tokenizer, SENTENCES, target_prefix=[""] * count, **SHORT))
    with pytest.raises(UserError, match="no target prefix for sentence 7;"):
        list(translate(model, tokenizer, SENTENCES, target_prefix=(), first_sentence=7, **SHORT))


def test_what_is_no_prefix_is_refused_in_one_sentence(model):
    tokenizer = train_tokenizer(SENTENCES * 2, 280)
    assert tokenizer.decode(tokenizer("</s>", add_special_tokens=False)["input_ids"]) == "</s>"  # a text here
    tokenizer.add_special_tokens({"additional_special_tokens": [">>fr<<"]})
    with pytest.raises(
        UserError, match=r"^the target prefix of sentence 1, 'a >>fr<<', has the special token '>>fr<<'"
    ):
        translate(model, tokenizer, ["a"], target_prefix="a >>fr<<")
    with pytest.raises(TypeError, match="must be a string, not a NoneType"):
        list(translate(model, tokenizer, ["a"], target_prefix=[None]))
    words = dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "a", "cat", "do@@", "g"])
    small = wordy_model(words)
    for prefix, message in {
        "a bird": r"'a bird', can't be tokenized: a part of it becomes <unk>; change it$",
        "a  cat": r"'a  cat', can't be tokenized: the tokenizer restores it as 'a cat'; write it so$",
        "   ": r"restores it as ''",
    }.items():
        with pytest.raises(UserError, match=message):
            list(translate(small, words, ["", "a"], target_prefix=["", prefix]))
    assert texts(translate(small, words, ["a"], target_prefix="cat do@@ g", **SHORT))[0][0].startswith("cat dog")


def test_a_search_that_asks_no_processor_is_found_out(model, tokenizer):
    def greedy(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return gnmt_beam_search(model, input_ids, LogitsProcessorList(), stopping_criteria, generation_config, **kwargs)

    with pytest.raises(UserError, match="sentence 1, 'zzz', is not the beginning of what the search found"):
        list(translate(model, tokenizer, ["a dog"], target_prefix="zzz", search=greedy, **SHORT))


def test_a_prefix_in_another_normal_form_is_kept_and_said(caplog):
    text = "Männer grüßen"
    tokenizer = train_tokenizer([text] * 3, 300)
    model = wordy_model(tokenizer)
    prefix = unicodedata.normalize("NFD", text)
    ((found,),) = texts(translate(model, tokenizer, ["Männer"], target_prefix=prefix, max_new_tokens=40))
    assert found.startswith(prefix) and "not in Unicode normal form NFC" in caplog.text


def test_the_processor_forces_the_rows_of_each_sentence():
    prefixes = [TargetPrefix("", ids, 1) for ids in ((1, 2), (0,), ())]
    processor = TargetPrefixLogitsProcessor(prefixes)
    scores = -torch.arange(24.0).view(6, 4)  # two rows a sentence
    first = processor(torch.zeros(6, 1, dtype=torch.long), scores)
    assert [[n for n, score in enumerate(row) if score > -torch.inf] for row in first.tolist()] == [
        [1], [1], [0], [0], [0, 1, 2, 3], [0, 1, 2, 3]
    ]  # fmt: skip
    assert (first == scores)[first > -torch.inf].all()
    second = processor(torch.zeros(6, 2, dtype=torch.long), scores)
    assert (second[:2] > -torch.inf).tolist() == [[False, False, True, False]] * 2 and (second[2:] == scores[2:]).all()
    assert processor(torch.zeros(6, 3, dtype=torch.long), scores) is scores
