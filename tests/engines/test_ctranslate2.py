"""CTranslate2 as the engine of `translate`: what export and CTranslate2 give, from a cache, or a refusal by name."""

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import ctranslate2
import pytest
import torch
from helpers import SENTENCES, SHORT, texts, wordy_model

from vanilla_transformer.convert.ctranslate2 import to_ctranslate2
from vanilla_transformer.data.files import new_folder
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.engines import ctranslate2 as module
from vanilla_transformer.engines.ctranslate2 import CTranslate2Engine
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.translate import translate


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 2, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    return wordy_model(tokenizer)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine(model, tokenizer, cache):
    return CTranslate2Engine(model, tokenizer, cache_dir=cache)


BEAMS = {"num_beams": 4, "search": None, "length_penalty": 0.6}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("settings", [{"num_beams": 1}, BEAMS | {"num_return_sequences": 2}])
def test_it_gives_what_export_and_ctranslate2_give(model, tokenizer, cache, tmp_path, dtype, settings):
    to_ctranslate2(model, tokenizer, tmp_path / "exported", dtype)
    translator = ctranslate2.Translator(str(tmp_path / "exported"))
    engine = CTranslate2Engine(model, tokenizer, dtype, cache)
    for sentence in filter(str.strip, SENTENCES):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])
        beams = settings["num_beams"]
        (result,) = translator.translate_batch(
            [tokens],
            beam_size=beams,
            num_hypotheses=settings.get("num_return_sequences", 1),
            patience=2 if beams > 1 else 1,
            length_penalty=settings.get("length_penalty", 0),
            max_decoding_length=12,
            min_decoding_length=0,
            return_scores=True,
        )
        (found,) = translate(model, tokenizer, [sentence], engine=engine, **settings, **SHORT)
        ids = [tokenizer.convert_tokens_to_ids(hypothesis) for hypothesis in result.hypotheses]
        assert [each.text for each in found] == tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert [each.score for each in found] == pytest.approx(result.scores, rel=1e-5)


def test_in_float32_it_is_the_model_itself(model, tokenizer, engine):
    expected = [best for (best,) in translate(model, tokenizer, SENTENCES, num_beams=1, **SHORT)]
    found = [best for (best,) in translate(model, tokenizer, SENTENCES, num_beams=1, engine=engine, **SHORT)]
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], rel=1e-3, abs=1e-4)
    own = texts(translate(model, tokenizer, SENTENCES, **BEAMS, **SHORT))
    beams = texts(translate(model, tokenizer, SENTENCES, engine=engine, **BEAMS, **SHORT))
    assert sum(map(list.__eq__, own, beams)) >= len(SENTENCES) - 1  # one of the two may stop too early


def test_windows_batches_and_paragraphs_are_as_ever(model, tokenizer, engine):
    settings = {"num_beams": 1, "engine": engine, **SHORT}
    expected = texts(translate(model, tokenizer, SENTENCES, **settings))
    assert texts(translate(model, tokenizer, SENTENCES, batch_tokens=8, **settings)) == expected
    lines = ["A dog runs. A cat.", "", "a cat"]
    found = texts(translate(model, tokenizer, lines, split_sentences="en", **settings))
    parts = texts(translate(model, tokenizer, ["A dog runs.", "A cat.", "", "a cat"], **settings))
    assert found == [[" ".join(text.strip() for (text,) in parts[:2])], *parts[2:]]


def test_a_model_is_converted_once(model, tokenizer, tmp_path, monkeypatch):
    conversions = []

    def convert(*arguments):
        conversions.append(arguments)
        to_ctranslate2(*arguments)

    monkeypatch.setattr(module, "to_ctranslate2", convert)
    with ThreadPoolExecutor(4) as threads:  # as processes do, they wait for each other's lock
        list(threads.map(lambda _: CTranslate2Engine(model, tokenizer, cache_dir=tmp_path).load(), range(4)))
    assert len(conversions) == 1
    CTranslate2Engine(model, tokenizer, "int8", tmp_path).load()
    other = copy.deepcopy(model)
    other.lm_head.weight.data[5, 3] += 1
    CTranslate2Engine(other, tokenizer, cache_dir=tmp_path).load()
    assert len(conversions) == 3 and len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3
    CTranslate2Engine(other, tokenizer, cache_dir=tmp_path).load()
    assert len(conversions) == 3


def test_a_conversion_that_fails_leaves_nothing(model, tokenizer, tmp_path, monkeypatch):
    def fail(*arguments):
        with new_folder(arguments[2], "export") as partial:
            (partial / "model.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "to_ctranslate2", fail)
    with pytest.raises(KeyboardInterrupt):
        CTranslate2Engine(model, tokenizer, cache_dir=tmp_path).load()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    monkeypatch.undo()
    CTranslate2Engine(model, tokenizer, cache_dir=tmp_path).load()


def test_a_cache_that_is_damaged_or_can_not_be_written_is_named(model, tokenizer, tmp_path):
    engine = CTranslate2Engine(model, tokenizer, cache_dir=tmp_path / "cache")
    engine.load()
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    (folder / "model.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"can't load {folder} .*; remove that folder"):
        CTranslate2Engine(model, tokenizer, cache_dir=tmp_path / "cache").load()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"can't write the cache {tmp_path / 'file'}"):
        CTranslate2Engine(model, tokenizer, cache_dir=tmp_path / "file").load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"does not have the paper's length penalty, \(\(5 \+ length\) / 6\)\^0.6; give normalize 0.6"),
        ({"num_beams": 2, "length_penalty": -1.0}, r"\^-1; give normalize -1"),
        ({"alignments": True}, "an engine can't do alignments"),
        ({"target_prefix": "a"}, "an engine can't do target_prefix"),
        ({"num_beams": 1, "no_repeat_ngram_size": 2}, r"can't do no_repeat_ngram_size \(2\)"),
        ({"num_beams": 1, "do_sample": True}, "can't do do_sample"),
        ({"num_beams": 1, "logits_processor": [math.exp]}, "can't do logits_processor"),
        ({"num_beams": 1, "max_source_length": 1025}, "max_source_length is 1,025; .* has 1,024 positions"),
        ({"num_beams": 1, "max_new_tokens": 2000}, "max_new_tokens is 2,000; .* has 1,024 positions"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(model, tokenizer, engine, settings, message):
    with pytest.raises(UserError, match=message):
        translate(model, tokenizer, SENTENCES, engine=engine, **settings)


def test_settings_of_the_model_that_it_can_not_do_are_refused(model, tokenizer, engine):
    other = copy.deepcopy(model)
    other.generation_config.repetition_penalty = 1.5
    with pytest.raises(
        UserError, match=r"can't do repetition_penalty \(1.5\), which is set here or in the model's gen"
    ):
        translate(other, tokenizer, SENTENCES, engine=engine, num_beams=1)
    other.generation_config = copy.deepcopy(model.generation_config)
    other.generation_config.eos_token_id = [2, 3]
    with pytest.raises(UserError, match=r"ends a sentence with the tokenizer's 2, but eos_token_id is \[2, 3\]"):
        translate(other, tokenizer, SENTENCES, engine=engine, num_beams=1)


def test_no_length_penalty_is_no_contradiction(model, tokenizer, engine):
    found = texts(translate(model, tokenizer, SENTENCES, engine=engine, num_beams=4, length_penalty=0.0, **SHORT))
    assert len(found) == len(SENTENCES)


def test_a_type_or_device_that_it_does_not_have_is_refused(model, tokenizer, monkeypatch):
    for dtype in ("int4", "", "float64"):
        with pytest.raises(
            UserError, match="^dtype is '.*'; the engine ctranslate2 has auto, .*float32.* on this device"
        ):
            CTranslate2Engine(model, tokenizer, dtype)
    with pytest.raises(UserError, match="device is 'meta'; the engine ctranslate2 has cpu and cuda"):
        module.check_compute_type("auto", torch.device("meta"))
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"ctranslate2 is not installed; .*vanilla-transformer\[ct2\]"):
        CTranslate2Engine(model, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": 7}, "ends a sentence with the tokenizer's 2, but eos_token_id is 7"),
        ({"eos_token_id": [2, 5]}, r"ends a sentence with the tokenizer's 2, but eos_token_id is \[2, 5\]"),
        ({"decoder_start_token_id": 7}, "starts with the 0 of the model's config, but decoder_start_token_id is 7"),
        ({"early_stopping": "never"}, "can't do early_stopping 'never'"),
    ],
)
def test_other_ends_and_starts_are_refused(model, tokenizer, engine, settings, message):
    with pytest.raises(UserError, match=message):
        translate(model, tokenizer, SENTENCES, engine=engine, **BEAMS | settings)


def test_a_modified_model_does_not_get_the_conversion_of_the_plain_one(model, tokenizer, cache, engine):
    """Its weights, by which the cache knows it, are the same."""
    engine.load()
    other = copy.deepcopy(model)
    other.lm_head.register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(UserError, match="computes something else than a plain VanillaTransformerForConditional"):
        CTranslate2Engine(other, tokenizer, cache_dir=cache).load()
