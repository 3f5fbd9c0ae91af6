"""`vanilla-transformer evaluate` with several references, metrics and systems."""

import json

import pytest
from helpers import NUMBERS

from vanilla_transformer.commands.reports import WIDTH
from vanilla_transformer.hub.provenance import Report
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.significance import paired_test
from vanilla_transformer.inference.translate import translate

REFERENCES = ["forty two", "nothing", "a thousand and one", "seven"]
OTHERS = ["forty-two", "none", "one thousand one", "the seven"]
BASELINE = ["forty two", "no", "a thousand and two", "7"]


def write(folder, **texts: list[str]) -> dict[str, str]:
    """Write files of lines; returns their paths."""
    paths = {name: str(folder / name.replace("_", ".")) for name in texts}
    for name, lines in texts.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return paths


@pytest.fixture
def files(tmp_path):
    return write(
        tmp_path, test_en=NUMBERS, test_fr=REFERENCES, others=OTHERS, baseline=BASELINE, better=REFERENCES[:3] + ["8"]
    )


@pytest.fixture
def data(tmp_path):
    return ["--test_file", str(tmp_path / "test"), "--source_lang", "en", "--target_lang", "fr"]


def test_several_files_of_references_are_several_references(run_script, files, data):
    both = [[first, second] for first, second in zip(REFERENCES, OTHERS, strict=True)]
    expected = corpus_scores(BASELINE, both)
    predictions = ["--predictions_file", files["baseline"], "--json"]
    code, out, _ = run_script("evaluate_model", *predictions, "--references_file", files["test_fr"], files["others"])
    report = json.loads(out)
    assert code == 0 and {name: report[name] for name in expected} == expected
    assert report["references"] == [files["test_fr"], files["others"]] and "nrefs:2|" in report["bleu_signature"]
    assert Report.from_mapping(report).test_set == "test.fr"
    code, out, _ = run_script("evaluate_model", *predictions, *data, "--references_file", files["others"])
    report = json.loads(out)
    assert code == 0 and {name: report[name] for name in expected} == expected
    assert report["references"] == files["others"] and Report.from_mapping(report).test_set == "test"


def test_further_metrics_are_added_with_their_signatures(run_script, files):
    command = ["--predictions_file", files["baseline"], "--references_file", files["test_fr"]]
    command += ["--metrics", "ter", "chrf++"]
    expected = corpus_scores(BASELINE, REFERENCES, further_metrics=["chrf++", "ter"])
    assert 0 < expected["ter"] and "|nw:2|" in expected["chrf++_signature"]
    report = json.loads(run_script("evaluate_model", *command, "--json")[1])
    assert {name: report[name] for name in expected} == expected
    out = run_script("evaluate_model", *command)[1]
    for name in ("chrf++", "ter"):
        assert f"{expected[name]:.2f}  {expected[f'{name}_signature']}" in out


def test_models_and_files_are_compared_in_one_call(run_script, files, data, folder, model, tokenizer):
    translated = [best.text for (best,) in translate(model, tokenizer, NUMBERS, num_beams=2)]
    command = ["--systems", files["baseline"], folder, *data, "--num_beams", "2", "--json"]
    code, out, _ = run_script("evaluate_model", *command)
    first, second = json.loads(out)["systems"]
    assert code == 0 and (first["system"], second["system"]) == (files["baseline"], folder)
    for report, hypotheses in ((first, BASELINE), (second, translated)):
        expected = corpus_scores(hypotheses, REFERENCES)
        assert {name: report[name] for name in expected} == expected
    alone = json.loads(run_script("evaluate_model", "--model_name_or_path", folder, *command[3:])[1])
    for name in ("seconds", "versions"):
        alone.pop(name), second.pop(name, None)
    assert second == {"system": folder, **alone}


@pytest.mark.parametrize("test_type", ["bs", "ar"])
def test_paired_tests_are_reported_in_json_and_in_a_table(run_script, files, test_type):
    systems = [files["baseline"], files["better"]]
    command = [
        "--systems",
        *systems,
        "--references_file",
        files["test_fr"],
        "--metrics",
        "ter",
        f"--paired_{test_type}",
    ]
    command += [f"--paired_{test_type}_n", "30", "--seed", "5"]
    expected = paired_test(
        [("", BASELINE), ("", REFERENCES[:3] + ["8"])],
        REFERENCES,
        test_type=test_type,
        n_samples=30,
        seed=5,
        further_metrics=["ter"],
    )
    report = json.loads(run_script("evaluate_model", *command, "--json")[1])
    assert [system["paired_test"] for system in report["systems"]] == expected["systems"]
    assert report["paired_test"]["baseline"] == files["baseline"]
    assert report["paired_test"]["signatures"] == expected["signatures"] and "sacrebleu" in report["versions"]

    code, out, _ = run_script("evaluate_model", *command)
    assert code == 0 and all(
        signature in out.splitlines() or signature in out for signature in expected["signatures"].values()
    )
    names = {files["baseline"], files["better"]}
    assert all(len(line) <= WIDTH for line in out.splitlines() if not any(name in line for name in names))
    first, second = (system["bleu"] for system in expected["systems"])
    assert f"{second['score']:.2f}" in out and f"{second['score'] - first['score']:+.2f}" in out
    assert f"{second['p_value']:.4f}" in out and ("95% +/-" in out) == (test_type == "bs")


def test_the_seed_is_sacrebleus_variable_unless_given(run_script, files, monkeypatch, refused):
    command = ["--systems", files["baseline"], files["better"], "--references_file", files["test_fr"], "--paired_bs"]
    command += ["--paired_bs_n", "10", "--json"]
    monkeypatch.setenv("SACREBLEU_SEED", "77")
    for words, seed in (([], 77), (["--seed", "3"], 3)):
        assert json.loads(run_script("evaluate_model", *command, *words)[1])["paired_test"]["seed"] == seed
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    assert "SACREBLEU_SEED is 'none'" in refused("evaluate_model", *command)


def test_what_does_not_go_together_is_refused_in_a_sentence(refused, files, data, folder, tmp_path):
    references = ["--references_file", files["test_fr"]]
    two = ["--systems", files["baseline"], files["better"], *references]
    paths = write(tmp_path, short=["a"], empty=[])
    for words, message in (
        (["--systems", files["baseline"], paths["short"], *references], "short has 1 lines but"),
        (["--predictions_file", files["baseline"], *references, paths["short"]], "short has 1 lines but"),
        (["--systems", paths["short"], folder, *data], "short has 1 lines but"),
        (["--predictions_file", paths["empty"], "--references_file", paths["empty"]], "empty is empty"),
        (["--systems", files["baseline"], "typo", *references], "typo is no file of translations"),
        (["--systems", folder, "no/such/model", *data], "no/such/model"),
        (["--systems", files["baseline"], folder], "files of translations need --references_file"),
        (["--systems", *two[1:], "--model_name_or_path", folder], "or several --systems"),
        ([*two, "--num_beams", "2"], "--num_beams can't be given with files"),
        (["--systems", folder, folder, "--output_file", "x"], "--output_file keeps the translations of one model"),
        ([*two, "--paired_bs", "--paired_ar"], "give one of the two"),
        (["--systems", files["baseline"], *references, "--paired_ar"], "--paired_ar compares systems"),
        (["--predictions_file", files["baseline"], *references, "--paired_bs"], "give at least two --systems"),
        ([*two, "--paired_bs", "--seed", "0"], "seed is 0"),
        ([*two, "--metrics", "meteor"], "metrics"),
        ([*two, "--metrics", "comet"], "give --test_file"),
        ([*two, *data, "--metrics", "comet"], "takes one reference"),
    ):
        assert message in refused("evaluate_model", *words), words


def test_options_of_a_test_that_is_not_asked_for_are_reported(run_script, files):
    command = ["--systems", files["baseline"], files["better"], "--references_file", files["test_fr"]]
    for words, note in (
        (["--paired_bs_n", "7", "--seed", "1"], "note: --seed has no effect: there is no --paired_bs or --paired_ar"),
        (["--paired_ar", "--paired_ar_n", "5", "--paired_bs_n", "7"], "note: --paired_bs_n has no effect"),
        (["--comet_model", "x"], "note: --comet_model has no effect: there is no --metrics comet"),
    ):
        code, _, err = run_script("evaluate_model", *command, *words)
        assert code == 0 and note in err, words


def test_comet_is_named_before_any_work_where_it_is_missing(refused, data, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused("evaluate_model", "--systems", "no/such/model", "nor/this", *data, "--metrics", "comet")
    assert "unbabel-comet" in error


def test_comet_has_a_column_and_a_signature(run_script, files, data, monkeypatch):
    class Stub:
        signature = "model:stub|refs:1"

        def __init__(self, model: str) -> None:
            assert model == "me/metric"

        def scores(self, sources, hypotheses, references):
            assert list(sources) == NUMBERS and references == REFERENCES
            return [
                float(hypothesis == reference) for hypothesis, reference in zip(hypotheses, references, strict=True)
            ]

    monkeypatch.setattr("vanilla_transformer.commands.evaluate.Comet", Stub)
    command = [
        "--systems",
        files["baseline"],
        files["better"],
        *data,
        "--metrics",
        "comet",
        "--comet_model",
        "me/metric",
    ]
    _, out, _ = run_script("evaluate_model", *command, "--paired_bs", "--paired_bs_n", "5")
    assert "COMET" in out and "0.2500" in out and "0.7500" in out and "COMET model:stub|refs:1" in out
    first, second = json.loads(run_script("evaluate_model", *command, "--json")[1])["systems"]
    assert (first["comet"], second["comet"], first["comet_signature"]) == (0.25, 0.75, "model:stub|refs:1")
