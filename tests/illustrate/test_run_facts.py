"""The curve of a run, and sentences that it was not trained on."""

import json
import math
from pathlib import Path

import pytest

from vanilla_transformer.data.numbers import number_pairs, short_number_pairs, write_number
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.hub.provenance import Data
from vanilla_transformer.illustrate.run import MOST_POINTS, example_pairs, example_sentence, read_curves

NUMBERS = Data("en", "fr", 256, 256)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["forty-two", "seven thousand and one"] * 2, 280)


def write_log(folder: Path, log: object, step: int = 10) -> None:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": log}))


def test_the_curve_is_that_of_the_last_checkpoint(tmp_path):
    write_log(tmp_path, [{"step": 1, "loss": 9.0}], step=9)
    log = [{"step": 5, "loss": 2.0}, {"step": 8, "eval_loss": 1.5, "eval_bleu": 30}, {"step": 10, "loss": 1.0}]
    write_log(tmp_path, log, step=10)
    expected = {"train": [[5, 2.0], [10, 1.0]], "validation": [[8, 1.5]], "scores": [[8, 30]]}
    assert read_curves(tmp_path) == expected
    assert read_curves(tmp_path / "checkpoint-9") == {"train": [[1, 9.0]], "validation": [], "scores": []}


@pytest.mark.parametrize(
    "log",
    [
        None,
        [],
        {},
        "text",
        [1, "a", None, {"step": "1", "loss": 1.0}, {"step": True, "loss": 1.0}, {"loss": 1.0}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": "<b>"}, {"step": 4}],
    ],
)
def test_a_log_without_numbers_is_none(log, tmp_path):
    assert read_curves(tmp_path) is None
    write_log(tmp_path, log)
    assert read_curves(tmp_path) is None


def test_a_long_curve_is_thinned_evenly_and_keeps_its_ends(tmp_path):
    write_log(tmp_path, [{"step": step, "loss": 1.0} for step in range(5_001)])
    steps = [step for step, _ in read_curves(tmp_path)["train"]]
    assert len(steps) == MOST_POINTS and steps[0] == 0 and steps[-1] == 5_000
    assert {later - earlier for earlier, later in zip(steps, steps[1:], strict=False)} == {5, 6}


def test_numbers_are_unseen_and_short(tokenizer):
    pairs = example_pairs(NUMBERS, tokenizer, 64)
    assert {("thirteen thousand", "treize mille"), ("twenty thousand and one", "vingt mille un")} < set(pairs)
    others = number_pairs("en", "fr", "test", 600)  # all of three digits, among others
    known = {pair for pair in zip(others["source"], others["target"], strict=True) if " thousand" not in pair[0]}
    assert {pair for pair in pairs if " thousand" not in pair[0]} == known
    trained = {pair["source"] for pair in short_number_pairs("en", "fr", "train")}
    assert len(pairs) > 1_000 and not trained & {source for source, _ in pairs}
    assert example_sentence(NUMBERS, pairs, tokenizer) == "seventy-one" == write_number(71, "en")
    with pytest.raises(ValueError, match="num2words does not know the language 'xx'"):
        short_number_pairs("en", "xx", "test")


def test_pairs_of_files_are_taken_where_they_can_be_shown(tokenizer, tmp_path, monkeypatch, caplog):
    lines = ["one two " * 20, "", "a\u2028b", "a short one", "  ", "another"]
    (tmp_path / "val.en").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (tmp_path / "val.fr").write_text("".join(f"<{line}>\n" for line in lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = Data("en", "fr", 256, 256, train_file="train", validation_file="val")
    pairs = example_pairs(data, tokenizer, 30)
    assert pairs == [("a short one", "<a short one>"), ("another", "<another>")]
    assert example_sentence(data, pairs, tokenizer) == "a short one"
    assert "the page shows sentences of val, which run.json names" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        None,
        Data("en", "fr", 256, 256, dataset_name="owner/data"),
        Data("en", "fr", 256, 256, train_file="train", validation_file="owner/data"),  # the name of a data set
        Data("en", "fr", 256, 256, train_file="train", validation_file="half"),
        Data("en", "fr", 256, 256, train_file="train"),
        Data("xx", "fr", 256, 256),
        Data("en", "en", 256, 256, train_file="train", validation_file="half"),
    ],
)
def test_what_is_not_there_is_not_looked_for(data, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "half.en").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    assert example_pairs(data, tokenizer, 64) == []
    assert example_sentence(data, [], tokenizer) == "Attention is all you need."
