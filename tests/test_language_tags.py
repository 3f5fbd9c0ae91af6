"""Tags of target languages: one id each wherever a model goes, and never a part of the text."""

import itertools

import pytest
from helpers import SENTENCES, SHORT, texts, wordy_model
from transformers import AutoTokenizer, pipeline

from vanilla_transformer import VanillaTransformerTranslationPipeline, language_tags_vanilla_transformer
from vanilla_transformer.convert.ctranslate2 import to_ctranslate2
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast, add_language_tags, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.translate import translate
from vanilla_transformer.language_tags_vanilla_transformer import is_blank, tag_sources, tagged_languages
from vanilla_transformer.training.averaging import average_checkpoints

LANGUAGES = ["de", "zh_Hant"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 2, 282, LANGUAGES)


@pytest.fixture(scope="module")
def model(tokenizer):
    return wordy_model(tokenizer)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tag_is_one_id_that_changes_no_other(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    plain = tokenizer("a dog runs")["input_ids"]
    for loaded in (
        tokenizer,
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert len(loaded) == 282 and tagged_languages(loaded) == LANGUAGES
        for text in (">>de<< a dog runs", ">>de<<a dog runs", "  >>de<< \t a dog runs"):
            assert loaded(text)["input_ids"] == [280, *plain]
        assert loaded(">>zh_Hant<<", add_special_tokens=False)["input_ids"] == [281]
        assert 280 not in loaded(">>fr<< >> de <<")["input_ids"]


def test_tags_are_counted_in_the_vocabulary():
    assert len(train_tokenizer(SENTENCES * 2, 262, LANGUAGES)) == 262
    with pytest.raises(UserError, match="vocab_size is 261; it must be an integer from 262"):
        train_tokenizer(SENTENCES * 2, 261, LANGUAGES)


def test_a_language_is_tagged_once(tokenizer):
    before = dict(tokenizer.get_vocab())
    add_language_tags(tokenizer, LANGUAGES)
    assert tokenizer.get_vocab() == before


@pytest.mark.parametrize("language", ["", "a b", "de<<", "über", "de\n"])
def test_a_language_that_can_not_be_a_tag_is_refused(language):
    with pytest.raises(UserError, match="can't be a tag; use a code of letters"):
        train_tokenizer(SENTENCES, 300, ["de", language])


def test_sources_get_the_tag_unless_they_have_one(tokenizer):
    sources = ["a dog", ">>zh_Hant<< a dog", "  >>de<<a dog", "", " \t", ">>fr<< a dog"]
    assert tag_sources(tokenizer, sources, "de") == [
        ">>de<< a dog",
        ">>zh_Hant<< a dog",
        "  >>de<<a dog",
        "",
        " \t",
        ">>de<< >>fr<< a dog",
    ]
    assert tag_sources(tokenizer, sources[:5]) == sources[:5]
    with pytest.raises(ValueError, match="a source begins with >>fr<<, but the model knows >>de<<, >>zh_Hant<<$"):
        tag_sources(tokenizer, sources)


def test_sources_without_a_language_are_reported(tokenizer, monkeypatch):
    lines = []
    monkeypatch.setattr(language_tags_vanilla_transformer.logger, "warning_once", lines.append)
    tag_sources(tokenizer, [">>de<< a", ""])
    assert not lines
    tag_sources(tokenizer, ["a"])
    assert "name no target language" in lines[0] and ">>de<<" in lines[0]


def test_translations_are_those_of_tagged_sentences(model, tokenizer):
    tagged = [f">>zh_Hant<< {sentence}" if sentence.strip() else sentence for sentence in SENTENCES]
    expected = texts(translate(model, tokenizer, tagged, **SHORT))
    assert texts(translate(model, tokenizer, SENTENCES, target_lang="zh_Hant", **SHORT)) == expected
    assert texts(translate(model, tokenizer, tagged, target_lang="de", **SHORT)) == expected
    assert texts(translate(model, tokenizer, SENTENCES, target_lang="de", **SHORT)) != expected


def test_the_pipeline_gives_what_translate_gives(model, tokenizer):
    pipe = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu", tgt_lang="de")
    for language, settings in (("de", {}), ("zh_Hant", {"tgt_lang": "zh_Hant"})):
        expected = texts(translate(model, tokenizer, SENTENCES, target_lang=language, **SHORT))
        found = [[result["translation_text"]] for result in pipe(SENTENCES, **settings, **SHORT)]
        assert found == expected
    with pytest.raises(ValueError, match="the target language is 'fr', but the model knows de, zh_Hant$"):
        pipe("a dog", tgt_lang="fr")


def test_a_saved_pipeline_brings_the_tags_along(model, tokenizer, tmp_path):
    VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer).save_pretrained(tmp_path)
    saved = pipeline("translation", str(tmp_path), trust_remote_code=True, device="cpu", tgt_lang="de")
    assert "transformers_modules" in type(saved).__module__
    expected = next(translate(model, tokenizer, ["a dog"], target_lang="de", **SHORT))[0].text
    assert saved("a dog", **SHORT) == [{"translation_text": expected}]


def test_an_unknown_language_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="the target language is 'fr', but the model knows de, zh_Hant$"):
        translate(model, tokenizer, ["a dog"], target_lang="fr")
    with pytest.raises(UserError, match="a source begins with >>fr<<, but the model knows >>de<<, >>zh_Hant<<$"):
        list(translate(model, tokenizer, [">>fr<< a dog"]))


def test_a_model_without_tags_has_no_target_language(model):
    with pytest.raises(UserError, match="'de', but the model has no tags of target languages; leave it out$"):
        translate(model, train_tokenizer(SENTENCES * 2, 280), ["a dog"], target_lang="de")


def test_an_average_keeps_the_tags(model, tokenizer, folder, tmp_path):
    checkpoints = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    for checkpoint in checkpoints:
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
    average_checkpoints(list(map(str, checkpoints)), str(tmp_path / "mean"))
    assert tagged_languages(load(str(tmp_path / "mean"), device="cpu")[1]) == LANGUAGES


def test_ctranslate2_obeys_the_tag(model, tokenizer, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    to_ctranslate2(model, tokenizer, tmp_path / "model")
    translator = ctranslate2.Translator(str(tmp_path / "model"))
    sources = [f"{tag} a dog runs" for tag in (">>de<<", ">>zh_Hant<<")]
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(source)["input_ids"]) for source in sources]
    assert [source[0] for source in tokens] == [">>de<<", ">>zh_Hant<<"]
    results = translator.translate_batch(tokens, beam_size=1, max_decoding_length=8, min_decoding_length=0)
    found = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
    inputs = tokenizer(sources, return_tensors="pt", padding=True)
    expected = model.generate(**inputs, num_beams=1, max_new_tokens=8).tolist()
    for ids, row in zip(found, expected, strict=True):
        assert ids == list(itertools.takewhile(lambda index: index not in (1, 2), row[1:]))
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "text", ["", " \t", "\u200b", "\ufeff", "\u00ad\u2060", "\u3164", "\u2800", "\x07", "\u3000\xa0"]
)
def test_a_text_with_nothing_to_see_is_blank(text, model, tokenizer):
    assert is_blank(text) and not is_blank(f"{text}.")
    ((translation,),) = translate(model, tokenizer, [text], target_lang="de", **SHORT)
    assert (translation.text, translation.score) == ("", 0.0)
    assert tag_sources(tokenizer, [text], "de") == [text]


@pytest.mark.parametrize("space", ["\u3000", "\xa0", "\ufeff"])
def test_a_tag_may_follow_any_white_space(tokenizer, space):
    source = f"{space}>>de<< a dog"
    assert tag_sources(tokenizer, [source], "zh_Hant") == [source] == tag_sources(tokenizer, [source])
