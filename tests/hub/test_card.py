"""The model card: what a run and its scores say is in it, and what they do not say is not."""

import json
import re
import shlex
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import one_layer_config
from huggingface_hub import ModelCard

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import subword_nmt_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.generation_vanilla_transformer import paper_generation_config
from vanilla_transformer.hub.card import make_card
from vanilla_transformer.hub.provenance import Data, Machine, Recipe, Result, Start, read_scores
from vanilla_transformer.hub.weights import weights_digest
from vanilla_transformer.inference.metrics import corpus_scores
from vanilla_transformer.inference.translate import translate
from vanilla_transformer.training.recipe import PaperTrainingArguments
from vanilla_transformer.training.record import read_record, write_record

# A run in the terms of docs/benchmarks.md's first: what `run.json` holds of it.
RECORD = {
    "command": "python scripts/train.py --train_file data/multi30k/train --output_dir /home/me/secret/runs/en-de "
    "--validation_file=/home/me/val",
    "model": {"model_name_or_path": None, "preset": "tiny", "config_overrides": "d_model=256", "from_hub": False},
    "data": {
        "train_file": "data/multi30k/train",
        "dataset_name": None,
        "source_lang": "en",
        "target_lang": "de",
        "max_source_length": 256,
        "max_target_length": 200,
        "streaming": False,
        "bpe_dropout": 0.1,
        "train_pairs": 28_998,
    },
    "recipe": {
        "per_device_train_tokens": 2_048,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.002,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 500.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-9,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "label_smoothing_factor": 0.1,
        "max_steps": 3_420,
        "seed": 42,
        "bf16": False,
        "fp16": False,
        "load_best_model_at_end": False,
        "metric_for_best_model": "bleu",
        "ema_decay": 0.999,
    },
    "result": {
        "steps": 3_420,
        "epochs": 12.667,
        "minutes": 38.56,
        "stopped": "Stopped at step 3,420 of 9,000: the limit of 38 minutes is reached.",
        "validation": {"eval_loss": 1.4458, "eval_bleu": 38.0526, "step": 3_420},
        "best_step": 3_420,
    },
    "machine": {"device": "cpu", "processes": 1, "threads": 2},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "weights": ["checkpoint-3325", "checkpoint-3420"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a dog", "a cat"] * 2, 270)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer)).eval()
    model.generation_config = paper_generation_config(model)
    return model


def report(**changes) -> dict:
    """A report as scripts/evaluate_model.py prints it."""
    scores = corpus_scores(["the cat sat on the mat"], ["the cat sat on the mat today"])
    decoding = {"num_beams": 4, "length_penalty": 0.6}
    return {**scores, "data": "/home/me/test_2016", "num_beams": 4, "decoding": decoding} | changes


def loaded(card: ModelCard, folder: Path) -> ModelCard:
    """The card as huggingface_hub reads it from its file."""
    card.save(folder / "README.md")
    return ModelCard.load(folder / "README.md")


def table_of(card: ModelCard, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without the head."""
    section = card.text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_a_card_says_what_run_and_scores_say(model, tokenizer, tmp_path):
    texts = {"title": "English to German", "about": "Captions.", "limits": "Not for prose.", "license": "mit"}
    card = make_card(model, tokenizer, "me/en-de", record=RECORD, scores=[report()], example='A "dog"', **texts)
    card = loaded(card, tmp_path)
    assert card.text.startswith("\n# English to German\n") and "Captions." in card.text
    assert 'from_pretrained("me/en-de", trust_remote_code=True)' in card.text
    assert r'tokenizer(["A \"dog\""], return_tensors="pt")' in card.text
    printed = [found.text for found in next(translate(model, tokenizer, ['A "dog"'], search=None))]
    assert f"\n# {printed}\n```" in card.text
    run = dict(table_of(card, "Training"))
    assert run["model"].startswith(f"{model.num_parameters():,} parameters: 1 + 1 layers, d_model 16, d_ff 32, 2 heads")
    assert run["vocabulary"] == f"one byte-level BPE of {len(tokenizer):,} types for both languages"
    assert run["data"] == "28,998 pairs of `data/multi30k/train`, en to de"
    assert run["BPE-dropout in training"] == "0.1"
    assert run["preset"] == "tiny with `d_model=256`"
    assert run["a step"] == "at most 4,096 source and 4,096 target tokens, padding counted"
    assert run["learning rate"] == "warm-up of 500 steps to 0.002, then cosine"
    assert run["steps"] == "3,420, 12.7 epochs"
    assert run["moving average of the weights"] == "decay 0.999"
    assert run["end"] == "Stopped at step 3,420 of 9,000: the limit of 38 minutes is reached."
    assert run["weights"] == "the mean of 2 checkpoints: checkpoint-3325, checkpoint-3420"
    assert run["last validation"] == "1.446 nats per token, BLEU 38.05"
    assert run["time"] == "38.6 minutes on a CPU with 2 threads"
    assert run["versions"] == "python 3.11.7, torch 2.13.0"
    assert "    --output_dir en-de \\\n    --validation_file=val\n" in card.text and "secret" not in card.text
    limits = card.text.split("## Limits\n")[1]
    assert "no source of more than 256 tokens, and no target of more than 200" in limits and "Not for prose." in limits
    assert "too short: the brevity penalty is 0.846 on test_2016" in limits
    assert "@inproceedings{vaswani2017attention," in card.text
    assert "{{" not in card.text and "{%" not in card.text and "None" not in card.text


def test_the_metadata_is_what_the_hub_reads(model, tokenizer, tmp_path):
    scores = [report(), report(dataset_name="me/pairs", dataset_config_name="en-de", split="test", num_beams=1)]
    record = deepcopy(RECORD)
    record["model"] |= {"model_name_or_path": "you/base", "from_hub": True}
    record["data"] |= {"dataset_name": "me/pairs"}
    card = make_card(model, tokenizer, "me/en-de", record=record, scores=scores, license="apache-2.0")
    data = loaded(card, tmp_path).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "translation", "apache-2.0")
    assert (data.language, data.datasets, data.base_model) == (["en", "de"], ["me/pairs"], "you/base")
    assert data.metrics == ["sacrebleu", "chrf"] and data.model_name == "en-de"
    assert "vanilla_transformer" in data.tags
    file, hub = data.eval_results[:2], data.eval_results[2:]
    for results, name in ((file, "test_2016"), (hub, "me/pairs en-de test")):
        for result, metric in zip(results, ("bleu", "chrf"), strict=True):
            assert (result.task_type, result.dataset_name) == ("translation", name)
            assert result.metric_value == round(report()[metric], 2)
            assert result.metric_args == {"signature": report()[f"{metric}_signature"]}
    assert [result.metric_type for result in file] == ["sacrebleu", "chrf"]
    assert file[0].metric_name == "sacreBLEU, the paper's search, beam 4 and length penalty 0.6"
    assert hub[0].metric_name == "sacreBLEU, greedy search"
    assert (hub[0].dataset_type, hub[0].dataset_config, hub[0].dataset_split) == ("me/pairs", "en-de", "test")
    rows = table_of(card, "Results")
    assert [row[:3] for row in rows[:2]] == [
        ["test_2016", "the paper's search, beam 4 and length penalty 0.6", name] for name in ("sacreBLEU", "chrF")
    ]
    assert rows[0][3].startswith(f"{report()['bleu']:.2f} (100.0/100.0/100.0/100.0, brevity penalty 0.846")
    assert rows[1][4] == f"`{report()['chrf_signature']}`".replace("|", r"\|")


def test_a_score_of_a_part_is_called_so(model, tokenizer, tmp_path):
    for whole, name in ((1, "test_2016"), (1_000, "test_2016, the first 1 of 1,000 sentences")):
        card = loaded(make_card(model, tokenizer, "me/en-de", scores=[report(test_set_sentences=whole)]), tmp_path)
        assert table_of(card, "Results")[0][0] == card.data.eval_results[0].dataset_name == name


def test_what_is_not_known_is_left_out(model, tokenizer, tmp_path):
    card = loaded(make_card(model, tokenizer, "me/en-de"), tmp_path)
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert card.text.startswith("\n# me/en-de\n") and "The run left no record of itself." in card.text
    assert [name for name, _ in table_of(card, "Training")] == ["model", "vocabulary"]
    assert "## Results" not in card.text and "```sh" not in card.text and "None" not in card.text
    assert 'tokenizer(["..."]' in card.text

    record = {name: RECORD[name] for name in ("data", "versions")} | {"data": RECORD["data"] | {"train_pairs": None}}
    card = make_card(model, tokenizer, "me/en-de", record=record)
    assert dict(table_of(card, "Training"))["data"] == "`data/multi30k/train`, en to de"
    assert card.text.startswith("\n# Translation from en to de\n")
    assert make_card(
        model, tokenizer, "x", record={"data": RECORD["data"] | {"target_lang": "target"}}
    ).data.language == ["en"]


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"weights": ["checkpoint-9"]}, "checkpoint-9"),
        ({"weights": []}, "of the last step"),
        ({"weights": [], "recipe": {"load_best_model_at_end": True}}, "of step 3,000, the best by validation bleu"),
    ],
)
def test_the_card_names_the_weights(model, tokenizer, changes, weights):
    record = RECORD | {
        name: RECORD[name] | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    record["result"] = RECORD["result"] | {"best_step": 3_000}
    assert dict(table_of(make_card(model, tokenizer, "x", record=record), "Training"))["weights"] == weights


def test_a_fine_tuned_model_names_its_start(model, tokenizer):
    record = deepcopy(RECORD)
    record["model"]["model_name_or_path"] = "/home/me/runs/base"
    card = make_card(model, tokenizer, "x", record=record)
    assert dict(table_of(card, "Training"))["fine-tuned from"] == "`base`"
    assert card.data.base_model is None


def test_a_link_to_a_checkpoint_has_the_record_of_its_run(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    write_record(checkpoint.parent, {"command": "train"})
    (tmp_path / "latest").symlink_to(checkpoint)
    assert read_record(tmp_path / "latest") == {"command": "train", "weights": ["checkpoint-5"]}


def test_a_torn_record_is_refused(model, tokenizer):
    record = RECORD | {"recipe": {}} | {"machine": {}}
    with pytest.raises(UserError, match="has no recipe.per_device_train_tokens; restore run.json"):
        make_card(model, tokenizer, "x", record=record | {"weights": []})


# What others wrote

SECRET = "hf_abcdefghijklmnopqrstuvwxyz012345"
HOSTILE = [
    "<script>alert(1)</script>",
    "x\n\n# Evil heading\n",
    "a | b | c",
    "```\n# Evil heading\n```",
    "`</code>`",
    "![x](https://evil.example/pixel.png)",
    "x\n---\nlicense: evil\n---\n",
    "x\nevil: true",
    "{{ 7 * 191 }}{% raw %}",
    f"token {SECRET} ghp_abcdefghijklmnopqrstuvwxyz0123456789 sk-abcdefghijklmnop1234567890",
    "\u202eevil\u2066\x00\x1b[31m",
]


def with_text(value, text: str):
    """Replace every text in nested lists and dictionaries, the keys of `versions` included."""
    if isinstance(value, dict):
        return {text if name == "torch" else name: with_text(item, text) for name, item in value.items()}
    if isinstance(value, list):
        return [with_text(item, text) for item in value]
    return text if isinstance(value, str) else value


def shape(card: ModelCard) -> list:
    """What a card is made of: headings, fences, and the number of cells in each row of a table."""
    lines = card.text.replace("<pre><code>", "```sh\n").replace("</code></pre>", "```").splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    return [[line for line in lines if line.startswith("## ")], sum(line.startswith("```") for line in lines), cells]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_downloaded_record_or_report_can_only_be_text_on_a_card(model, tokenizer, text, tmp_path):
    record = deepcopy(RECORD)
    record["model"] |= {"model_name_or_path": None}
    record["data"] |= {"dataset_name": "me/pairs"}
    scores = [report(dataset_name="me/pairs", dataset_config_name="en-de", split="test")]
    harmless = loaded(make_card(model, tokenizer, "x", record=record, scores=scores), tmp_path)
    for start in (None, text):
        hostile = with_text(record, text)
        hostile["command"] = shlex.join(["train", text, "--output_dir", text])
        hostile["model"] |= {"model_name_or_path": start, "from_hub": True}
        card = make_card(model, tokenizer, "x", record=hostile, scores=with_text(scores, text))
        card = loaded(card, tmp_path)
        assert shape(card) == shape(harmless)
        whole = (tmp_path / "README.md").read_text()
        for forbidden in (
            "<script",
            "\n# Evil",
            "1337",
            SECRET,
            "ghp_abc",
            "sk-abc",
            "\x1b",
            "\u202e",
        ):
            assert forbidden not in whole, forbidden
        outside_of_code = re.sub(r"```sh\n.*?\n```", "", whole, flags=re.DOTALL)
        assert not re.search(r"(?<!\\)\]\(https://evil", outside_of_code)
        assert card.data.to_dict().keys() <= harmless.data.to_dict().keys()
        assert card.data.license is None and card.data.datasets is None and card.data.base_model is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_can_not_change_the_head_of_a_card(model, tokenizer, text, tmp_path):
    card = loaded(make_card(model, tokenizer, f"me/{text}", record=RECORD, scores=[report()], title=text), tmp_path)
    assert card.data.license is None and "evil" not in card.data.to_dict()
    assert SECRET not in card.text.split("## Use")[0]
    assert len(re.findall("^# ", card.text.split("## Use")[0], re.MULTILINE)) == 1


@pytest.mark.parametrize("section", ["recipe", "result", "machine", "data", "model"])
def test_a_value_of_another_type_is_refused_by_its_name(model, tokenizer, section):
    for name in {**RECORD[section]}:
        for wrong in ([1], float("nan"), 10**400, "x" * 30_000, {"a": 1}):
            record = deepcopy(RECORD)
            record[section][name] = wrong
            if not known(section, name):
                continue
            with pytest.raises(UserError, match=rf"has {section}\.{name}|has no {section}\.{name}") as error:
                make_card(model, tokenizer, "x", record=record)
            assert len(str(error.value)) < 300


def known(section: str, name: str) -> bool:
    """Whether a card reads a value. `validation` may be an object of any other values."""
    classes = {"recipe": Recipe, "result": Result, "machine": Machine, "data": Data, "model": Start}
    return name in classes[section].__dataclass_fields__ and name != "validation"


# Deviations from the paper

ALWAYS = {"attention's projections"}  # what no config can make as in the paper


def deviating(config: VanillaTransformerConfig, tokenizer, record=None, **decoding) -> dict[str, list[str]]:
    """The table by its first column, for a model that is never computed with."""
    with torch.device("meta"):
        model = VanillaTransformerForConditionalGeneration(config)
    model.generation_config = paper_generation_config(model)
    model.generation_config.update(**decoding)
    card = make_card(model, tokenizer, "x", record=record)
    return {row[0]: row[1:] for row in table_of(card, "Where it is not the paper to the letter")}


def paper_record(preset: str) -> dict:
    """The record of a run by the paper's recipe."""
    defaults = PaperTrainingArguments("unused", use_cpu=True).to_dict()
    record = deepcopy(RECORD)
    record["recipe"] = {name: defaults[name] for name in RECORD["recipe"]}
    d_model = VanillaTransformerConfig.preset(preset).d_model
    record["recipe"] |= {"gradient_accumulation_steps": 1, "learning_rate": (d_model * 4_000) ** -0.5}
    record["result"]["steps"] = {"base": 100_000, "big": 300_000}[preset]
    record["weights"] = ["checkpoint"] * {"base": 5, "big": 20}[preset]
    return record


@pytest.mark.parametrize("preset", ["base", "big"])
def test_the_papers_own_models_deviate_where_the_readme_says(preset, tokenizer):
    table = deviating(VanillaTransformerConfig.preset(preset), tokenizer, paper_record(preset))
    assert table.keys() == ALWAYS | {"length penalty a", "BPE"}
    greedy = deviating(VanillaTransformerConfig.preset(preset), tokenizer, paper_record(preset), num_beams=1)
    assert greedy.keys() == ALWAYS | {"search", "BPE"} and greedy["BPE"] == table["BPE"]
    assert greedy["search"] == ["beam 4 and length penalty 0.6", "greedy search"]


@pytest.mark.parametrize(
    ("field", "value", "row"),
    [
        ("d_model", 1024, ("size", "6 + 6 layers, d_model 1,024, d_ff 2,048, 8 heads")),
        ("decoder_ffn_dim", 64, ("size", "6 + 6 layers, d_model 512, d_ff 2,048 and 64, 8 heads")),
        ("dropout", 0.2, ("dropout", "0.2")),
        ("attention_dropout", 0.1, ("dropout on attention weights", "0.1")),
        ("activation_dropout", 0.1, ("dropout on activations", "0.1")),
        ("activation_function", "gelu", ("activation", "gelu")),
        ("scale_embedding", False, ("embeddings", "not scaled")),
        ("tie_word_embeddings", False, ("embeddings and output layer", "three matrices")),
    ],
)
def test_each_field_of_the_config_that_deviates_is_named(field, value, row, tokenizer):
    table = deviating(VanillaTransformerConfig(**{field: value}), tokenizer)
    assert table.keys() == ALWAYS | {row[0], "length penalty a", "BPE"} and table[row[0]][1] == row[1]


def test_each_part_of_the_recipe_that_deviates_is_named(tokenizer):
    record = deepcopy(RECORD)
    record["recipe"] |= {"adam_beta2": 0.999, "weight_decay": 0.01, "max_grad_norm": 1.0, "label_smoothing_factor": 0.0}
    table = deviating(VanillaTransformerConfig(), tokenizer, record)
    own = {name: cells[1] for name, cells in table.items() if name not in ALWAYS | {"length penalty a", "BPE"}}
    assert own == {
        "source tokens in a step": "at most 4,096",
        "steps": "3,420",
        "checkpoints averaged": "2",
        "learning rate, peak": "0.002, then cosine",
        "warm-up steps": "500",
        "Adam's beta 2": "0.999",
        "weight decay": "0.01",
        "gradient clipping": "1",
        "label smoothing": "0",
    }
    assert table["learning rate, peak"][0] == f"{(512 * 500) ** -0.5:.3g}, then inverse sqrt"


def test_subwords_of_tokenized_text_are_the_papers():
    tokenizer = subword_nmt_tokenizer(["d o", "do g</w>"], ["dog"])
    assert deviating(VanillaTransformerConfig(), tokenizer).keys() == ALWAYS | {"length penalty a"}


# Scores


def test_scores_of_other_weights_are_refused(model, tmp_path):
    path = tmp_path / "scores.json"
    for weights in ({}, {"weights": weights_digest(model)}):
        path.write_text(json.dumps(report(**weights)))
        assert read_scores(path, model)["bleu"] == report()["bleu"]
    for content, message in (
        (json.dumps(report(weights="0" * 64)), "has the scores of other weights than this model's"),
        (json.dumps(report(weights="0" * 64, dtype="bfloat16")), "score this model, without --dtype"),
        (json.dumps({"bleu": 1.0}), "has no bleu_signature; give what vanilla-transformer evaluate --json prints"),
        (json.dumps({"systems": [report()]}), "has the scores of several systems; give those of this model alone"),
        ("[1]", r"holds \[1\]; it must be a JSON object"),
        ("sacreBLEU 1.0", "can't be read: Expecting value"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_scores(path, model)
    with pytest.raises(UserError, match="No such file"):
        read_scores(tmp_path / "none.json", model)
