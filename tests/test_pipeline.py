"""The translation pipeline: what goes in and out, that a batch changes nothing, and that a folder brings it along."""

import functools
import itertools
import json
import os
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import pytest
import torch
from helpers import HIDE_THE_PACKAGE, wordy_model
from transformers import AutoConfig, GenerationConfig, StoppingCriteria, pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from transformers.pipelines.pt_utils import KeyDataset

import vanilla_transformer
from vanilla_transformer import VanillaTransformerTranslationPipeline, gnmt_beam_search, pipeline_vanilla_transformer
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.inference.translate import translate

SENTENCES = ["a dog runs", "two dogs run on the green grass", "", "a cat", "the cat sleeps all day long", " \t"]
CODE = Path(vanilla_transformer.__file__).parent
PIPELINE_FILES = {
    "pipeline_vanilla_transformer.py",
    "generation_vanilla_transformer.py",
    "step_decoder_vanilla_transformer.py",
    "integrity_vanilla_transformer.py",
    "eval_mode_vanilla_transformer.py",
    "language_tags_vanilla_transformer.py",
}
MODEL_FILES = {f"{name}_vanilla_transformer.py" for name in ("configuration", "modeling", "kernels", "base")}
CUSTOM_PIPELINES = {
    "translation": {
        "impl": "pipeline_vanilla_transformer.VanillaTransformerTranslationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}
greedy_and_beams = pytest.mark.parametrize("num_beams", [1, 3])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 2, 280)


@pytest.fixture
def model(tokenizer):
    return wordy_model(tokenizer, dropout=0.5)


@pytest.fixture
def pipe(model, tokenizer):
    """No sentence ends by itself here: each must stop at its own limit, whatever it is batched with."""
    model.generation_config.update(num_beams=3, length_penalty=0.6, suppress_tokens=[1, 2])
    return VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu")


def lengths(results: list) -> list[int]:
    """How many tokens were generated, of the first translation of each source; 1 is the start token."""
    return [len(translations[0]["translation_token_ids"]) - 1 for translations in results]


# In and out


def test_text_in_a_list_of_dictionaries_out(pipe):
    together = pipe(SENTENCES)
    assert [list(record) for record in together] == [["translation_text"]] * len(SENTENCES)
    assert [pipe(sentence) for sentence in SENTENCES] == [[record] for record in together]
    assert len({record["translation_text"] for record in together}) == 5  # of which one is empty
    assert pipe([]) == []


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"num_beams": 1}, {"length_penalty": 2.0}], ids=str)
@pytest.mark.parametrize("own", [{}, {"num_beams": 3, "length_penalty": 0.1}], ids=str)
def test_the_search_is_that_of_translate(model, tokenizer, own, settings):
    model.generation_config.update(**own)
    pipe = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu")
    expected = [{"translation_text": found.text} for (found,) in translate(model, tokenizer, SENTENCES, **settings)]
    assert pipe(SENTENCES, batch_size=3, **settings) == expected
    assert pipe(SENTENCES, generation_config=GenerationConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "searches"),
    [({}, 1), ({"num_beams": 1}, 1), ({"do_sample": True}, 0), ({"do_sample": True, "num_beams": 1}, 0)],
    ids=str,
)
def test_all_but_samples_are_the_papers_search(pipe, model, tokenizer, monkeypatch, settings, searches):
    calls = []

    @functools.wraps(gnmt_beam_search)
    def counted(*args, **kwargs):
        calls.append(kwargs)
        return gnmt_beam_search(*args, **kwargs)

    monkeypatch.setattr(pipeline_vanilla_transformer, "gnmt_beam_search", counted)
    sentence = "two dogs run on the green grass"
    torch.manual_seed(1)
    (expected,) = model.generate(
        **tokenizer(sentence, return_tensors="pt"), **settings, custom_generate=gnmt_beam_search if searches else None
    )
    torch.manual_seed(1)
    assert torch.equal(pipe(sentence, return_tensors=True, **settings)[0]["translation_token_ids"], expected)
    assert len(calls) == searches


def test_several_translations_per_text(pipe):
    texts = ["a dog runs", " ", "a cat"]
    results = pipe(texts, num_return_sequences=3, batch_size=3)
    assert results[1] == [{"translation_text": ""}] * 3
    assert results[0] == pipe("a dog runs", num_return_sequences=3)
    assert [translations[:1] for translations in results] == [pipe(text) for text in texts]
    ids = [record["translation_token_ids"] for record in pipe("a cat", num_return_sequences=3, return_tensors=True)]
    assert len({tuple(row.tolist()) for row in ids}) == 3


def test_ids_in_place_of_the_text_or_beside_it(pipe, tokenizer):
    (record,) = pipe("a dog runs", return_tensors=True)
    assert list(record) == ["translation_token_ids"] and record["translation_token_ids"].dtype == torch.int64
    assert record["translation_token_ids"][0] == 0 and not (record["translation_token_ids"] == 1).any()
    (both,) = pipe("a dog runs", return_tensors=True, return_text=True)
    assert torch.equal(both["translation_token_ids"], record["translation_token_ids"])
    text = tokenizer.decode(both["translation_token_ids"], skip_special_tokens=True)
    assert both["translation_text"] == text == pipe("a dog runs", return_text=True)[0]["translation_text"]
    (blank,) = pipe(" ", return_tensors=True)
    assert blank["translation_token_ids"].tolist() == []


@pytest.mark.parametrize("wrong", [("a", "b"), 5, None, ["a", 5], [["a"]], {"text": "a"}], ids=str)
def test_what_is_no_text_is_refused(pipe, wrong):
    with pytest.raises(TypeError, match="must be a string, not a (tuple|int|NoneType|list|dict); several go in a list"):
        pipe(wrong)


def test_arguments_of_generate_given_at_construction(model, tokenizer, pipe):
    settings = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 5, "return_tensors": True}
    made = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device="cpu", batch_size=4, **settings)
    results = made(SENTENCES)
    assert [len(translations) for translations in results] == [2] * len(SENTENCES)
    assert lengths(results) == [5, 5, -1, 5, 5, -1]
    assert lengths(made(SENTENCES, max_new_tokens=3)) == [3, 3, -1, 3, 3, -1]
    with pytest.raises(ValueError, match="no_such_setting"):
        pipe("a dog", no_such_setting=1)


# Batches and limits


@greedy_and_beams
def test_a_batch_changes_no_translation_and_no_limit(pipe, tokenizer, num_beams):
    settings = {"num_beams": num_beams, "return_tensors": True, "return_text": True}
    alone = [pipe(sentence, **settings) for sentence in SENTENCES]
    source_lengths = [len(tokenizer(sentence)["input_ids"]) if sentence.strip() else -51 for sentence in SENTENCES]
    assert lengths(alone) == [length + 50 for length in source_lengths]
    for batch_size in (2, 6):
        for one, (batched,) in zip(pipe(SENTENCES, batch_size=batch_size, **settings), alone, strict=True):
            assert one["translation_text"] == batched["translation_text"]
            assert torch.equal(one["translation_token_ids"], batched["translation_token_ids"])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_each_sample_ends_at_its_own_sources_limit(pipe, tokenizer, num_beams):
    results = pipe(
        SENTENCES, batch_size=6, do_sample=True, num_beams=num_beams, num_return_sequences=2, return_tensors=True
    )
    for sentence, translations in zip(SENTENCES, results, strict=True):
        limit = 1 + len(tokenizer(sentence)["input_ids"]) + 50 if sentence.strip() else 0
        assert [len(record["translation_token_ids"]) for record in translations] == [limit] * 2


@greedy_and_beams
def test_a_limit_that_is_set_counts_alone(pipe, model, num_beams):
    limit = {"num_beams": num_beams, "return_tensors": True}
    assert lengths([pipe("a dog", max_new_tokens=100, **limit)]) == [100]
    assert lengths([pipe("a dog", max_length=91, **limit)]) == [90]
    config = GenerationConfig(max_new_tokens=80, num_beams=num_beams)
    assert lengths([pipe("a dog", generation_config=config, return_tensors=True)]) == [80]
    model.generation_config.max_new_tokens = 70
    assert lengths([pipe("a dog", **limit)]) == [70]


def test_the_callers_own_stopping_and_search_are_kept(pipe):
    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 4)

    for num_beams in (1, 2):
        assert lengths([pipe("a dog", num_beams=num_beams, stopping_criteria=[Stop()], return_tensors=True)]) == [3]
    kept = pipe("a dog", custom_generate=lambda model, input_ids, **kwargs: input_ids[:1], return_tensors=True)
    assert kept[0]["translation_token_ids"].tolist() == [0]


def test_a_generator_and_a_data_set_are_read_as_they_are_needed(pipe):
    expected = [[record] for record in pipe(SENTENCES, max_new_tokens=4)]
    read = []
    endless = (read.append(n) or SENTENCES[n % len(SENTENCES)] for n in itertools.count())
    translations = pipe(endless, max_new_tokens=4, batch_size=2)
    assert list(itertools.islice(translations, 6)) == expected
    assert len(read) == 6
    data = KeyDataset([{"en": sentence} for sentence in SENTENCES], "en")
    assert list(pipe(data, max_new_tokens=4, batch_size=4)) == expected


# The model


def test_the_model_is_left_as_it_was(pipe, model):
    expected, settings = pipe("a dog"), model.generation_config.to_dict()
    model.train()  # with dropout 0.5, which must not touch translations
    assert pipe("a dog") == expected and model.training
    with pytest.raises(ValueError):
        pipe("a dog", max_new_tokens=-1)
    assert model.training
    assert model.generation_config.to_dict() == settings


def test_a_blank_text_does_not_reach_the_model(pipe, model, monkeypatch):
    monkeypatch.setattr(model, "generate", None)
    blank = ["", " ", "\t\n", "\u3000"]
    assert pipe(blank, batch_size=3) == [{"translation_text": ""}] * 4


# Registration, and the code that travels


def test_the_registered_task_loads_any_saved_model(pipe, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = pipeline("vanilla-translation", model=str(tmp_path), device="cpu")
    assert type(loaded) is VanillaTransformerTranslationPipeline
    assert loaded(SENTENCES, batch_size=2) == pipe(SENTENCES)


def test_a_saved_pipeline_names_its_code_and_a_model_saved_alone_does_not(pipe, model, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    model.save_pretrained(tmp_path / "model")
    for name, code in (("pipeline", MODEL_FILES | PIPELINE_FILES), ("model", MODEL_FILES)):
        folder = tmp_path / name
        assert {path.name for path in folder.glob("*.py")} == code
        assert all((folder / file).read_bytes() == (CODE / file).read_bytes() for file in code)
    assert json.loads((tmp_path / "pipeline" / "config.json").read_text())["custom_pipelines"] == CUSTOM_PIPELINES
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "model"), "custom_pipelines")


def test_the_code_that_travels_imports_what_every_reader_has():
    needed = get_relative_import_files(CODE / "pipeline_vanilla_transformer.py")
    files = {"pipeline_vanilla_transformer.py", *(Path(file).name for file in needed)}
    assert PIPELINE_FILES <= files <= PIPELINE_FILES | MODEL_FILES
    imports = {name for file in files for name in get_imports(CODE / file)}
    assert imports - set(sys.stdlib_module_names) <= {"torch", "transformers", "huggingface_hub"}


WITHOUT_THE_PACKAGE = HIDE_THE_PACKAGE + textwrap.dedent("""
    import json
    import sys
    from transformers import AutoModelForSeq2SeqLM, pipeline

    folder, sentences = sys.argv[1], json.loads(sys.argv[2])
    try:
        pipeline("translation", model=folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        raise AssertionError("loaded without its code")
    for arguments in ({"task": "translation", "model": folder}, {"model": folder}):
        pipe = pipeline(**arguments, trust_remote_code=True, device="cpu")
        assert type(pipe).__module__.startswith("transformers_modules.")
        print(json.dumps(pipe(sentences, batch_size=4)))
    pipe.model.save_pretrained(f"{folder}-alone")
    pipe.save_pretrained(f"{folder}-again")
    again = pipeline("translation", model=f"{folder}-again", trust_remote_code=True, device="cpu")
    print(json.dumps(again(sentences, num_beams=1)))
    AutoModelForSeq2SeqLM.from_pretrained(f"{folder}-alone", trust_remote_code=True)
    assert not [name for name in sys.modules if name.split(".")[0] == "vanilla_transformer"]
""")


def test_a_saved_pipeline_works_where_the_package_is_missing(pipe, tmp_path):
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder), json.dumps(SENTENCES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    beams, beams_again, greedy = map(json.loads, done.stdout.splitlines())
    assert beams == beams_again == pipe(SENTENCES)
    assert greedy == pipe(SENTENCES, num_beams=1) != beams
    again = folder.with_name("saved-again")
    assert json.loads((again / "config.json").read_text())["custom_pipelines"] == CUSTOM_PIPELINES
    assert {path.name for path in again.glob("*.py")} == MODEL_FILES | PIPELINE_FILES
    alone = folder.with_name("saved-alone")
    assert "custom_pipelines" not in json.loads((alone / "config.json").read_text())


def test_a_source_in_another_normal_form_gets_that_of_the_training_text():
    text = "zwei Männer grüßen"
    tokenizer = train_tokenizer([text] * 3, 300)
    pipe = VanillaTransformerTranslationPipeline(wordy_model(tokenizer), tokenizer=tokenizer, device="cpu")
    assert pipe(unicodedata.normalize("NFD", text), max_new_tokens=5) == pipe(text, max_new_tokens=5)
