"""`vanilla-transformer score`, as a user runs it."""

import gzip
import json

import pytest
from helpers import NUMBERS

from vanilla_transformer.inference.scoring import rerank, score
from vanilla_transformer.inference.translate import Translation

TARGETS = ["forty two", "a", "", "sieben"]
PAIRS = list(zip(NUMBERS, TARGETS, strict=True))


@pytest.fixture
def files(tmp_path):
    """Two files with a byte order mark, CRLF and no last line feed, and what else the command reads."""
    (tmp_path / "data.en").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NUMBERS).encode())
    with gzip.open(tmp_path / "data.fr.gz", "wt") as file:
        file.write("".join(f"{target}\n" for target in TARGETS))
    rows = [
        {"source": source, "translations": [{"text": text, "score": -1.0} for text in ("b\nc", target)]}
        for source, target in PAIRS
    ]
    (tmp_path / "nbest").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {name: str(tmp_path / name) for name in ("data", "data.en", "data.fr.gz", "nbest", "out", "out.gz")}


def rows(found) -> list[list[float]]:
    return [[pair.log_prob, pair.tokens, pair.log_prob_per_token, pair.score] for pair in found]


def numbers(out: str) -> list[list[float]]:
    return [list(map(float, line.split("\t"))) for line in out.splitlines()]


def test_every_input_gives_the_same_scores(run_script, files, folder, model, tokenizer):
    expected = [pytest.approx(row, abs=1e-4) for row in rows(score(model, tokenizer, PAIRS))]
    stdin = "".join(f"{source}\t{target}\n" for source, target in PAIRS).encode()
    for words, given in (
        (["--source_file", files["data.en"], "--target_file", files["data.fr.gz"]], b""),
        (["--pairs_file", files["data"], "--source_lang", "en", "--target_lang", "fr"], b""),
        ([], stdin),
    ):
        code, out, err = run_script("score", "--model_name_or_path", folder, *words, stdin=given)
        assert (code, err) == (0, "") and numbers(out) == expected


def test_json_has_the_log_probability_of_each_token(run_script, files, folder, model, tokenizer):
    command = ["--model_name_or_path", folder, "--source_file", files["data.en"], "--target_file", files["data.fr.gz"]]
    out = run_script("score", *command, "--json", "--length_penalty", "1")[1]
    for line, pair, found in zip(
        out.splitlines(), PAIRS, score(model, tokenizer, PAIRS, length_penalty=1.0), strict=True
    ):
        row = json.loads(line)
        assert (row["source"], row["target"]) == pair
        assert row["score"] == pytest.approx(found.score, abs=1e-4) and row["tokens"] == found.tokens
        assert row["token_log_probs"] == pytest.approx(found.token_log_probs, abs=1e-4)
        assert tokenizer.convert_tokens_to_ids(row["target_tokens"]) == found.token_ids


def test_lists_are_reranked(run_script, files, folder, model, tokenizer):
    lists = [(source, [Translation(text, -1.0) for text in ("b\nc", target)]) for source, target in PAIRS]
    expected = list(rerank(model, tokenizer, lists, weight=0.5))
    command = ["--model_name_or_path", folder, "--nbest_file", files["nbest"], "--weight", "0.5"]
    assert run_script("score", *command)[1].splitlines() == [best.text.replace("\n", " ") for best, _ in expected]
    out = run_script("score", *command, "--json", "--output_file", files["out.gz"])[1]
    with gzip.open(files["out.gz"], "rt") as file:
        found = [json.loads(line) for line in file]
    assert out == "" and [row["source"] for row in found] == NUMBERS
    for row, translations in zip(found, expected, strict=True):
        assert [item["text"] for item in row["translations"]] == [translation.text for translation in translations]
        assert [item["score"] for item in row["translations"]] == pytest.approx(
            [translation.score for translation in translations], abs=1e-4
        )


def test_alignments_of_a_list_stay_with_their_translations(run_script, folder, tmp_path):
    translations = [
        {"text": "x", "score": -9.0, "alignment": [[0, 0]]},
        {"text": "y z", "score": -1.0, "alignment": []},
    ]
    (tmp_path / "nbest").write_text(json.dumps({"source": "a", "translations": translations}) + "\n")
    command = ["--model_name_or_path", folder, "--nbest_file", str(tmp_path / "nbest"), "--weight", "0", "--json"]
    first, second = json.loads(run_script("score", *command)[1])["translations"]
    assert (first["text"], first["alignment"], second["alignment"]) == ("y z", [], [[0, 0]])


def test_an_output_is_complete_or_not_there(refused, files, folder, tmp_path):
    command = ["--model_name_or_path", folder, "--output_file", files["out"]]
    error = refused("score", *command, stdin=b"one\tun\ntwo deux\n")
    assert "standard input, line 2, has 0 tabs" in error
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]
    command[-1] = files["nbest"]
    assert "exists already" in refused("score", *command, stdin=b"one\tun\n")


def test_what_cannot_be_scored_is_refused_in_a_sentence(refused, files, folder, tmp_path):
    (tmp_path / "short").write_text("a\n")
    for name, text in (("half", '{"source": "a"}'), ("none", '{"source": "a", "translations": []}'), ("text", "a")):
        (tmp_path / name).write_text(f"{text}\n")
    pair = ["--source_file", files["data.en"], "--target_file"]
    for words, message in (
        ([*pair, str(tmp_path / "short")], "data.en has 4 lines but"),
        ([*pair, "no-such"], "no-such"),
        (pair[:2], "one of them is missing"),
        (
            [*pair, files["data.fr.gz"], "--nbest_file", files["nbest"]],
            "--nbest_file, --source_file are several inputs",
        ),
        (["--pairs_file", files["data"]], "--pairs_file needs --source_lang and --target_lang"),
        (["--nbest_file", str(tmp_path / "half")], "half, line 1"),
        (["--nbest_file", str(tmp_path / "none")], "is no n-best list"),
        (["--nbest_file", str(tmp_path / "text")], "not JSON"),
        (["--max_length", "1"], "max_length is 1"),
        (["--max_length", "3", *pair, files["data.fr.gz"]], "pair 1: the source has"),
        (["--weight", "nan"], "weight is nan"),
        (["--batch_tokens", "0"], "batch_tokens is 0"),
        (["--length_penalty", "inf"], "length_penalty is inf"),
        (["--device", "nonsense"], "device is 'nonsense'"),
    ):
        assert message in refused("score", "--model_name_or_path", folder, *words), words


def test_options_without_effect_are_reported(run_script, files, folder):
    command = ["--model_name_or_path", folder, "--source_file", files["data.en"], "--target_file", files["data.fr.gz"]]
    code, _, err = run_script("score", *command, "--weight", "0.5", "--source_lang", "en")
    assert code == 0 and "note: --weight has no effect: there is no --nbest_file" in err
    assert "note: --source_lang has no effect: there is no --pairs_file" in err


def test_a_target_language_of_a_model_without_tags_is_refused_unless_it_names_a_column(refused, files, folder):
    words = ["--source_file", files["data.en"], "--target_file", files["data.fr.gz"], "--target_lang", "fr"]
    error = refused("score", "--model_name_or_path", folder, *words)
    assert "the target language is 'fr', but the model has no tags of target languages" in error


def test_standard_input_that_is_utf_16_is_refused(refused, folder):
    error = refused("score", "--model_name_or_path", folder, stdin="a\tb\nc\td\n".encode("utf-16-le"))
    assert "standard input, line 1: there is a NUL byte" in error
