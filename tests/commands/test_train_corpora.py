"""Training on several corpora, into several languages: from the options to the model that knows its languages."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vanilla_transformer.commands.train_arguments import DataArguments
from vanilla_transformer.errors import UserError
from vanilla_transformer.hub.card import make_card
from vanilla_transformer.inference.loading import load
from vanilla_transformer.language_tags_vanilla_transformer import tagged_languages
from vanilla_transformer.training.record import read_record

SMALL = (
    "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 --vocab_size 300 --warmup_steps 10 "
    "--per_device_train_tokens 300 --max_length_ratio 99 --max_train_samples 40 --max_eval_samples 2 --eval_steps 3 "
    "--save_steps 3 --generation_max_length 6 --logging_steps 1 --use_cpu --disable_tqdm True"
).split()
QUIET = "--eval_strategy no --load_best_model_at_end False".split()
TWO = "--source_lang en --target_lang de fr".split()


@pytest.fixture
def train(run_script):
    """Run the command in this process; returns what it printed."""

    def train(*arguments: object, expect: int = 0) -> str:
        code, out, err = run_script("train", *map(str, arguments))
        assert code == expect, err
        return out if expect == 0 else err.strip().splitlines()[-1]

    return train


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def whole(train, whole_folder) -> Path:
    """A run of 6 steps from two corpora with weights, trained once."""
    if not whole_folder.exists():
        out = train("--output_dir", whole_folder, *TWO, *SMALL, "--train_weights", "1", "3", "--max_steps", "6")
        assert "train, numbers (en to de): kept 40 of 40 pairs" in out
        assert "validation, numbers (en to fr): kept 2 of 2 pairs" in out
        assert "an epoch: 20 of 40 and 60 of 40 pairs" in out
        assert "target languages: de, fr; each source begins with its tag, such as >>de<<" in out
        assert (
            "eval_bleu_de with the tokenizer 13a, eval_bleu_fr with the tokenizer 13a; eval_bleu is their mean" in out
        )
        assert out.count("source      >>de<< ") == out.count("source      >>fr<< ") == 2
    return whole_folder


def last_line(folder: Path) -> dict[str, float]:
    log = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    return next(line for line in reversed(log) if "eval_loss" in line)


def test_each_language_is_scored_and_bleu_is_the_mean(whole):
    line = last_line(whole)
    for metric in ("bleu", "chrf", "exact_match"):
        assert line[f"eval_{metric}"] == pytest.approx(
            (line[f"eval_{metric}_de"] + line[f"eval_{metric}_fr"]) / 2, abs=1e-9
        )


def test_a_model_of_two_languages_is_recorded_translated_with_and_put_on_its_card(whole, run_script):
    data = read_record(whole)["data"]
    assert (data["source_lang"], data["target_lang"]) == (["en"], ["de", "fr"])
    assert (data["train_weights"], data["train_pairs"]) == ([1.0, 3.0], 80)
    model, tokenizer = load(str(whole), device="cpu")
    assert model.config.vocab_size == len(tokenizer) and tagged_languages(tokenizer) == ["de", "fr"]

    card = str(make_card(model, tokenizer, "me/x", record=read_record(whole), example="seven"))
    assert "- en\n- de\n- fr\n" in card and "# Translation from en to de and fr" in card
    assert "one of `>>de<<`, `>>fr<<`" in card or "&gt;&gt;de&lt;&lt;" in card
    assert "weights of the corpora | 1, 3 |" in card and '">>de<< seven"' in card

    arguments = ["--model_name_or_path", str(whole), "--num_beams", "1", "--max_new_tokens", "9"]
    tagged = run_script("translate", *arguments, ">>fr<< seven")
    assert run_script("translate", *arguments, "--target_lang", "fr", "seven")[:2] == tagged[:2]
    code, _, err = run_script("translate", *arguments, "--target_lang", "it", "seven")
    assert (code, err) == (2, "error: the target language is 'it', but the model knows de, fr\n")
    scores = {
        language: run_script(
            "evaluate_model", *arguments, "--target_lang", language, "--max_predict_samples", "2", "--json"
        )
        for language in ("de", "fr", "it")
    }
    assert json.loads(scores["de"][1])["target_lang"] == "de" and scores["it"][0] == 2


def test_a_resumed_mixture_ends_as_the_uninterrupted_one(whole, train, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--output_dir", folder, *SMALL, *TWO, "--train_weights", "1", "3"]
    train(*arguments, "--max_steps", "3")
    changed = "the training data, its weights, tokenizer or length limits differ from those of checkpoint-3"
    for other in (["--train_weights", "1", "2"], ["--source_lang", "ko", "en", "--train_weights", "1", "3"]):
        resume = ["--output_dir", folder, "--resume_from_checkpoint", "--max_steps", "6"]
        assert changed in train(*resume, *other, expect=2)
    train("--output_dir", folder, "--resume_from_checkpoint", "--max_steps", "6")
    weights, others = (load_file(run / "checkpoint-6" / "model.safetensors") for run in (whole, folder))
    assert all((weights[name] == others[name]).all() for name in weights)


def test_a_resumed_stream_of_corpora_ends_as_the_uninterrupted_one(train, tmp_path):
    arguments = [*SMALL, *QUIET, *TWO, "--train_weights", "1", "3", "--streaming", "--shuffle_buffer_size", "30"]
    train("--output_dir", tmp_path / "whole", *arguments, "--max_steps", "6")
    train("--output_dir", tmp_path / "parts", *arguments, "--max_steps", "3")
    resume = ["--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "--max_steps", "6"]
    assert "the training data, its weights" in train(*resume, "--train_weights", "1", "3.01", expect=2)
    train(*resume)
    runs = (load_file(tmp_path / run / "checkpoint-6" / "model.safetensors") for run in ("whole", "parts"))
    weights, others = runs
    assert all((weights[name] == others[name]).all() for name in weights)


def test_fine_tuning_adds_the_tag_of_a_new_language(whole, train, tmp_path):
    recipe = [word for word in SMALL[6:] if word]  # without preset, config_overrides and vocab_size
    train(
        "--output_dir",
        tmp_path / "run",
        "--model_name_or_path",
        whole,
        "--target_lang",
        "es",
        "--max_steps",
        "3",
        *recipe,
        *QUIET,
    )
    model, tokenizer = load(str(tmp_path / "run"), device="cpu")
    assert tagged_languages(tokenizer) == ["de", "fr", "es"]
    assert model.config.vocab_size == len(tokenizer) == len(load(str(whole), device="cpu")[1]) + 1


def test_a_best_model_by_the_score_of_one_language(train, tmp_path):
    wrong = train("--output_dir", tmp_path / "run", *SMALL, *TWO, "--metric_for_best_model", "bleu_it", expect=2)
    assert "metric_for_best_model is 'bleu_it'; it must be one of loss, perplexity, bleu, chrf" in wrong
    assert "bleu_de, chrf_de, exact_match_de, bleu_fr" in wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_lang": ["de", "fr"], "source_lang": ["en", "en", "ko"]},
            "source_lang has 3 values, target_lang has 2",
        ),
        ({"target_lang": ["de", "en"]}, "source_lang and target_lang are both en; they must differ"),
        ({"target_lang": ["de", "de"]}, r"the corpus numbers \(en to de\) is given twice; give it once"),
        (
            {"train_file": ["a", "a"], "validation_file": ["b"]},
            r"the corpus a \(en to fr\) is given twice; give it once, and its share with train_weights",
        ),
        ({"train_weights": [2.0]}, "train_weights are 2.0, but there is one corpus"),
        ({"target_lang": ["de", "fr"], "train_weights": [2.0]}, "but there are 2 corpora; give one weight for each"),
        ({"target_lang": ["de", "fr"], "train_weights": [2.0, 0.0]}, "each must be a number above 0"),
        ({"target_lang": ["de", "fr"], "streaming": True}, "need train_weights, such as 1 1"),
        ({"target_lang": ["de", "a b"]}, "target_lang is de a b: the target language 'a b' can't be a tag"),
        (
            {"train_file": ["a", "b"], "validation_file": ["c", "d", "e"], "target_lang": ["de", "fr"]},
            "validation_file has 3 values, target_lang has 2 values",
        ),
    ],
)  # fmt: skip
def test_corpora_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DataArguments(**options).check_corpora()


def test_one_validation_file_is_validated_on_in_each_language_once():
    data = DataArguments(train_file=["a", "b", "c"], validation_file=["v"], target_lang=["de", "de", "fr"])
    assert [str(corpus) for corpus in data.corpora("validation")] == ["v (en to de)", "v (en to fr)"]
    assert [str(corpus) for corpus in data.corpora("train")] == ["a (en to de)", "b (en to de)", "c (en to fr)"]


def test_options_of_an_earlier_version_name_one_corpus():
    data = DataArguments(train_file="a", validation_file="v", source_lang="en", target_lang="de")
    assert [str(corpus) for corpus in data.corpora("train")] == ["a (en to de)"]
