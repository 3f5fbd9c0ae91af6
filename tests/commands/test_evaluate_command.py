"""`vanilla-transformer evaluate`, as a user runs it."""

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from helpers import NUMBERS

from vanilla_transformer.data.numbers import number_pairs
from vanilla_transformer.hub.weights import weights_digest
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.test_set import read_references
from vanilla_transformer.inference.text_io import replace_line_breaks
from vanilla_transformer.inference.translate import translate

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_evaluates_two_text_files(tmp_path):
    (tmp_path / "predictions").write_text("the cat sat on the mat\na dog\n")
    (tmp_path / "references").write_text("the cat sat on a mat\na dog\n")

    command = [sys.executable, str(SCRIPTS / "evaluate_model.py"), "--json", "--predictions_file", "predictions"]
    done = subprocess.run([*command, "--references_file", "references"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    expected = corpus_scores(["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog"])
    assert {name: report[name] for name in expected} == expected
    assert report["predictions"] == "predictions" and report["references"] == "references"
    assert set(report["versions"]) == {"torch", "transformers", "sacrebleu"}


def test_evaluates_a_model_on_a_test_set(run_script, folder, model, tokenizer, tmp_path):
    hypotheses = [translation.text for (translation,) in translate(model, tokenizer, NUMBERS, num_beams=2)]
    references = ["x", "", hypotheses[2], "y"]
    (tmp_path / "test.en").write_text("".join(f"{sentence}\n" for sentence in NUMBERS))
    (tmp_path / "test.fr").write_text("".join(f"{reference}\n" for reference in references))
    data = ["--test_file", str(tmp_path / "test"), "--source_lang", "en", "--target_lang", "fr"]
    common = ["--model_name_or_path", folder, *data, "--num_beams", "2"]

    code, out, _ = run_script("evaluate_model", *common, "--json", "--output_file", str(tmp_path / "out.txt"))
    assert code == 0
    report = json.loads(out)
    expected = corpus_scores(hypotheses, references)
    assert {name: report[name] for name in expected} == expected
    assert (report["model"], report["num_beams"], report["device"]) == (folder, 2, str(model.device))
    assert (report["weights"], report["dataset_name"], report["split"]) == (weights_digest(model), None, None)
    assert report["seconds"] > 0 and report["decoding"]["num_beams"] == 2
    assert (tmp_path / "out.txt").read_text().split("\n") == [*map(replace_line_breaks, hypotheses), ""]

    assert report["dtype"] == "float32"
    _, out, _ = run_script("evaluate_model", *common, "--json", "--dtype", "bfloat16")
    rounded = copy.deepcopy(model).bfloat16()
    assert (json.loads(out)["dtype"], json.loads(out)["weights"]) == ("bfloat16", weights_digest(rounded))

    code, out, _ = run_script("evaluate_model", *common, "--max_predict_samples", "2")
    expected = corpus_scores(hypotheses[:2], references[:2])
    assert code == 0
    for shown in (expected["bleu_signature"], expected["chrf_signature"], "50.00% of 2 sentences", "num_beams 2"):
        assert shown in out

    files = ["--predictions_file", str(tmp_path / "out.txt"), "--references_file", str(tmp_path / "test.fr")]
    for command in (common, files):
        _, out, _ = run_script("evaluate_model", *command, "--max_predict_samples", "2", "--json")
        report = json.loads(out)
        assert (report["bleu"], report["sentences"], report["test_set_sentences"]) == (expected["bleu"], 2, 4)


def test_evaluates_a_model_on_unseen_numbers_by_default(run_script, folder, model, tokenizer):
    code, out, _ = run_script("evaluate_model", "--model_name_or_path", folder, "--max_predict_samples", "8", "--json")
    pairs = number_pairs("en", "fr", "test", 8)
    hypotheses = [translation.text for (translation,) in translate(model, tokenizer, pairs["source"])]
    report = json.loads(out)
    assert code == 0 and report["data"] == "numbers en-fr" and report["sentences"] == 8
    assert report["chrf"] == corpus_scores(hypotheses, list(pairs["target"]))["chrf"]


def test_evaluate_refuses_what_it_cannot_do(refused, folder, tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("a\n")
    long.write_text("a\nb\n")
    files = ["--predictions_file", str(short), "--references_file"]
    model = ["--model_name_or_path", folder]
    assert "either --model_name_or_path" in refused("evaluate_model")
    assert "either --model_name_or_path" in refused("evaluate_model", *model, *files, str(long))
    assert "one of them is missing" in refused("evaluate_model", "--predictions_file", str(short))
    assert "short.txt has 1 lines but" in refused("evaluate_model", *files, str(long))
    assert "no-such.txt" in refused("evaluate_model", *files, str(tmp_path / "no-such.txt"))
    assert "--target_lang" in refused("evaluate_model", *model, "--test_file", str(short), "--source_lang", "en")
    assert "max_predict_samples is 0" in refused("evaluate_model", *model, "--max_predict_samples", "0")
    numbers = [*model, "--max_predict_samples", "2"]
    assert "short.txt exists already" in refused("evaluate_model", *numbers, "--output_file", str(short))
    assert short.read_text() == "a\n"


def test_bleus_tokenizer_follows_the_target_language_unless_told(run_script, tmp_path):
    (tmp_path / "text").write_text("猫坐在垫子上。\n")
    files = ["--predictions_file", str(tmp_path / "text"), "--references_file", str(tmp_path / "text"), "--json"]
    for flags, tokenizer in (
        ([], "13a"),
        (["--target_lang", "zh"], "zh"),
        (["--target_lang", "zh", "--bleu_tokenize", "char"], "char"),
    ):
        code, out, _ = run_script("evaluate_model", *files, *flags)
        assert code == 0 and f"|tok:{tokenizer}|" in json.loads(out)["bleu_signature"]


def test_a_missing_package_of_bleus_tokenizer_is_named_before_the_model_is_loaded(refused, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    error = refused("evaluate_model", "--model_name_or_path", "no/such", "--bleu_tokenize", "ja-mecab")
    assert "pip install 'sacrebleu[ja]'" in error


def test_references_come_from_a_pipe(tmp_path):
    """A pipe can be read only once."""
    (tmp_path / "hypotheses").write_text("a b\nc d\n")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=("a b\nc d\n",), daemon=True).start()
    test_set = read_references([str(pipe), str(tmp_path / "hypotheses")], max_samples=1)
    assert test_set.size == 2 and test_set.references == [["a b"], ["a b"]]
