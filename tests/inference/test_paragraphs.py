"""Texts of several sentences: split, translated sentence by sentence, and joined."""

import json
import math
import sys

import pytest
from helpers import SHORT, wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import translate as translate_module
from vanilla_transformer.inference.alignments import split_into_words
from vanilla_transformer.inference.model_files import SavedModel
from vanilla_transformer.inference.paragraphs import SentenceSplitter, find_split_language, join_translations
from vanilla_transformer.inference.translate import Translation, translate

TEXTS = ["A dog runs.  Two dogs run, e.g. on the grass! The cat sleeps", "", "a cat", " \t", " Mr. Dog runs. A cat. "]
SENTENCES = [
    ["A dog runs.", "Two dogs run, e.g. on the grass!", "The cat sleeps"],
    [""],
    ["a cat"],
    [""],
    ["Mr. Dog runs.", "A cat."],
]


@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        *(("en", text, sentences) for text, sentences in zip(TEXTS, SENTENCES, strict=True)),
        ("en-GB", "A dog. A cat.", ["A dog.", "A cat."]),
        ("de", "Er kam z. B. am 3. Oktober an. Sie nicht.", ["Er kam z. B. am 3. Oktober an.", "Sie nicht."]),
        ("ja", "猫がいる。犬もいる！", ["猫がいる。", "犬もいる！"]),
        ("ko", "나는 간다. 너는 온다.", ["나는 간다.", "너는 온다."]),
        ("en", "One.\n\nTwo.\u2028 🐕", None),
        ("ar", "ذهب. عاد؟ نعم.", None),
    ],
)
def test_a_text_is_split_by_the_rules_of_its_language(language, text, sentences):
    found = SentenceSplitter(language).split(text)
    assert sentences in (None, found)
    assert "".join("".join(found).split()) == "".join(text.split())  # nothing is lost


def test_a_long_text_is_split_whole():
    text = " ".join(f"Dog {number} runs." for number in range(20_000))
    assert SentenceSplitter("en").split(text) == [f"Dog {number} runs." for number in range(20_000)]


@pytest.mark.parametrize("beams", [1, 4])
def test_the_translation_of_a_text_is_that_of_its_sentences(model, tokenizer, monkeypatch, beams):
    settings = {"num_beams": beams, "alignments": True, **SHORT}
    found = [each for (each,) in translate(model, tokenizer, TEXTS, split_sentences="en", **settings)]
    assert len(found) == len(TEXTS)
    for text, sentences, translation in zip(TEXTS, SENTENCES, found, strict=True):
        parts = [each for (each,) in translate(model, tokenizer, sentences, **settings)]
        if len(sentences) == 1:
            assert (parts[0].text, parts[0].alignment) == (translation.text, translation.alignment)
            (unsplit,) = next(translate(model, tokenizer, [text], **settings))
            assert (unsplit.text, unsplit.alignment) == (translation.text, translation.alignment)
            continue
        assert translation.text == " ".join(part.text.strip() for part in parts if part.text.strip())
        assert translation.score == pytest.approx(sum(part.score for part in parts), rel=1e-4)
        assert {target for _, target in translation.alignment} == set(range(len(split_into_words(translation.text))))
        first = len(split_into_words(parts[0].text))
        assert translation.alignment[:first] == parts[0].alignment
    monkeypatch.setattr(translate_module, "WINDOW_SIZE", 2)
    again = [each for (each,) in translate(model, tokenizer, TEXTS, split_sentences="en", batch_tokens=16, **settings)]
    assert [each.text for each in again] == [each.text for each in found]


def test_translations_are_joined_as_their_script_is_written():
    def joined(*texts):
        sentences = [f"S{number}." for number in range(len(texts))]
        return join_translations(" ".join(sentences), sentences, [Translation(text, -1.0) for text in texts])

    assert joined("猫がいる。", "犬もいる！") == Translation("猫がいる。犬もいる！", -2.0)
    assert joined("一个。", "Python 很好。", "好").text == "一个。 Python 很好。好"
    assert joined("고양이가 있다.", "개도 있다.").text == "고양이가 있다. 개도 있다."
    assert joined("Ein Hund. ", "", " Zwei.").text == "Ein Hund. Zwei."
    assert joined("", "").text == ""
    assert math.isnan(join_translations("A. B.", ["A.", "B."], [Translation("a", math.nan)] * 2).score)


def test_alignments_count_the_words_of_the_whole_text():
    translations = [
        Translation("x y", -1.0, ((1, 0), (0, 1))),
        Translation("z", -1.0, ((0, 0),)),
        Translation("", 0, ()),
    ]
    joined = join_translations(" A b.  C! D", ["A b.", "C!", "D"], translations)
    assert (joined.text, joined.alignment) == ("x y z", ((1, 0), (0, 1), (2, 2)))
    cut = [Translation("x.", 0.0, ((0, 0),)), Translation("y", 0.0, ((0, 0), (1, 0)))]
    # "a.b" is one word of the text, and was split in two.
    assert join_translations("a.b c", ["a.", "b c"], cut).alignment == ((0, 0), (0, 1), (1, 1))
    unspaced = [Translation("x", 0.0, ((1, 0),)), Translation("y", 0.0, ((0, 0),))]
    assert join_translations("猫犬。鳥", ["猫犬。", "鳥"], unspaced).alignment == ((1, 0), (3, 1))


def test_a_sentence_that_is_too_long_is_named_by_its_text(model, tokenizer):
    texts = ["A cat.", "A cat. A dog runs and runs and runs and runs and runs."]
    with pytest.raises(UserError, match="^sentence 2 has .* more than max_source_length 12"):
        list(translate(model, tokenizer, texts, split_sentences="en", max_source_length=12, too_long="refuse"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences is 2, .* with split_sentences it must be 1"),
        ({"target_prefix": "x"}, "target_prefix goes with sentences"),
        ({"split_sentences": ""}, "the language to split sentences by is ''; give a code such as en"),
        ({"split_sentences": "English"}, "the language to split sentences by is 'English'"),
    ],
)
def test_what_can_not_be_split_is_refused(model, tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        translate(model, tokenizer, TEXTS, **({"split_sentences": "en"} | settings))


def test_a_missing_library_is_named_with_its_extra(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(UserError, match=r"sentencex is not installed; .*vanilla-transformer\[sentences\]"):
        translate(model, tokenizer, TEXTS, split_sentences="en")


@pytest.mark.parametrize(
    ("record", "given", "language"),
    [
        ({"data": {"source_lang": "de"}}, None, "de"),
        ({"data": {"source_lang": ["de", "de"]}}, None, "de"),
        ({"data": {"source_lang": "de"}}, "en", "en"),
        (None, "fr_CA", "fr_CA"),
        (None, None, None),
        ({}, None, None),
        ({"data": {"source_lang": ["de", "en"]}}, None, None),
        ({"data": {"source_lang": None}}, None, None),
    ],
)
def test_the_language_is_that_of_training_unless_given(tmp_path, record, given, language):
    if record is not None:
        (tmp_path / "run.json").write_text(json.dumps(record))
    saved = SavedModel(str(tmp_path))
    if language is None:
        with pytest.raises(UserError, match="no run.json that names that of its sources; give --source_lang"):
            find_split_language(saved, given)
    else:
        assert find_split_language(saved, given) == language


def test_a_tag_of_a_text_is_not_that_of_its_first_sentence_only():
    """The other sentences would get none, or that of the target language."""
    tokenizer = train_tokenizer(["A dog runs. A cat."] * 2, 270)
    tokenizer.add_tokens([">>de<<", ">>fr<<"])
    model = wordy_model(tokenizer)
    settings = {"split_sentences": "en", **SHORT}
    with pytest.raises(
        UserError, match="sentence 2 is split into 2, and its tag >>de<< would be that of the first only"
    ):
        list(translate(model, tokenizer, ["A dog.", ">>de<< A dog runs. A cat."], target_lang="fr", **settings))
    found = translate(model, tokenizer, [">>de<< A dog runs. A cat.", ">>fr<< A dog."], target_lang="de", **settings)
    assert len(list(found)) == 2
