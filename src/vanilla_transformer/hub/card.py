"""The model card: the template `model_card.md`, filled from the model, the record of its run and its scores."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..errors import UserError
from ..generation_vanilla_transformer import PAPER_DECODING
from ..inference.metrics import Scores
from ..inference.translate import translate
from ..training.recipe import RECIPES, PaperTrainingArguments, noam_peak
from .probe import weights_digest

TEMPLATE = Path(__file__).with_name("model_card.md")


# What `evaluation.score` gives that the Hub has a metric for: the Hub's name, and the one for people.
METRICS = {"bleu": ("sacrebleu", "sacreBLEU"), "chrf": ("chrf", "chrF")}


SHORT = 0.97  # below this brevity penalty translations are called short


PAPER_STEP_TOKENS = 25_000  # section 5.1, of each side


Row = tuple[str, ...]


Comparison = tuple[str, str, str, bool]  # subject, the paper's choice, this model's, and whether they agree


def make_card(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_id: str,
    *,
    record: Mapping[str, Any] | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
    about: str | None = None,
    limits: str | None = None,
    example: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Fill the template. What is not known is left out.

    Args:
        model: The whole model.
        tokenizer: Its tokenizer.
        model_id: What the card's code loads: the repository's id, or a folder.
        record: What the run says of itself, see `run_record.read_record`.
        scores: Reports of `vanilla-transformer evaluate --json`, see `read_scores`.
        title: The heading; by default the languages.
        about: On the data and the purpose, in Markdown.
        limits: What else the model is not good for, in Markdown.
        example: A source sentence; the card shows the model's translation of it.
        license: The license of the weights, by the Hub's name for it, such as "apache-2.0".

    Raises:
        UserError: The record lacks something that it would have if it were whole.
    """
    record = record or {}
    try:
        languages = languages_of(record)
        title = title or (f"Translation from {' to '.join(languages)}" if languages else model_id)
        return ModelCard.from_template(
            metadata(record, scores, model_id.rpartition("/")[2], license),
            template_path=str(TEMPLATE),
            title=title,
            about=about or "",
            tied=model.config.tie_word_embeddings,
            model_id=model_id,
            example=json.dumps(example or "...", ensure_ascii=False),
            translations=[found.text for found in next(translate(model, tokenizer, [example], search=None))]
            if example
            else None,
            search=search_in_words(model.generation_config.num_beams, model.generation_config.length_penalty),
            run=[*model_rows(model, tokenizer), *run_rows(record)],
            command=public_command(record["command"]) if "command" in record else None,
            results=[row for report in scores for row in result_rows(report)],
            deviations=deviations(model, tokenizer, record),
            limits=[*known_limits(record, scores), *([limits] if limits else [])],
        )
    except KeyError as error:
        raise UserError(f"the record of the run has no {error}; restore run.json, or go on without it") from error


def metadata(
    record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]], model_name: str, license: str | None
) -> ModelCardData:
    """The card's head, which the Hub reads."""
    data, start = record.get("data", {}), record.get("model", {})
    results = [result for report in scores for result in eval_results(report)]
    codes = [language for language in languages_of(record) if re.fullmatch("[a-z]{2,3}", language)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="translation",
        license=license,
        language=codes or None,
        base_model=start.get("model_name_or_path") if start.get("from_hub") else None,
        datasets=[data["dataset_name"]] if data.get("dataset_name") else None,
        tags=[VanillaTransformerConfig.model_type, "attention-is-all-you-need"],
        metrics=[name for name, _ in METRICS.values()] if results else None,
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def languages_of(record: Mapping[str, Any]) -> list[str]:
    """Source and target language, or nothing where they are not known."""
    return [record["data"][side] for side in ("source_lang", "target_lang")] if "data" in record else []


def search_in_words(num_beams: int | None, length_penalty: float | None) -> str:
    """A way of searching; None is what generate() does by default."""
    if (num_beams or 1) == 1:
        return "greedy search"
    return f"beam {num_beams} and length penalty {1.0 if length_penalty is None else length_penalty:g}"


def read_scores(path: str | Path, model: PreTrainedModel) -> dict[str, Any]:
    """A report of `vanilla-transformer evaluate --json`.

    Args:
        path: The file.
        model: The model whose card the scores are for.

    Raises:
        UserError: The file can't be read, is no such report, or is one on other weights.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read: {error}; give what vanilla-transformer evaluate --json prints"
        ) from error
    if not isinstance(report, dict) or not report.keys() >= Scores.__annotations__.keys():
        raise UserError(f"{path} holds no scores; give what vanilla-transformer evaluate --json prints")
    if "weights" in report and report["weights"] != weights_digest(model):
        raise UserError(f"{path} has the scores of other weights than this model's; score this model")
    return report


def test_set_of(report: Mapping[str, Any]) -> str:
    """What to call the sentences that were scored: a data set's id and split, or a file's name."""
    if report.get("dataset_name"):
        return " ".join(filter(None, (report[name] for name in ("dataset_name", "dataset_config_name", "split"))))
    return Path(report.get("data") or report["references"]).name


def scored_part_of(report: Mapping[str, Any]) -> str:
    """What to call the test set, and how much of it was scored where that is not all."""
    scored, whole = report["sentences"], report.get("test_set_sentences")
    part = f", the first {scored:,} of {whole:,} sentences" if whole and scored < whole else ""
    return test_set_of(report) + part


def search_of(report: Mapping[str, Any]) -> str:
    """How the scored translations were searched for, where the report says it."""
    if "decoding" not in report:
        return ""
    words = search_in_words(report["num_beams"], report["decoding"].get("length_penalty"))
    return words if report["num_beams"] == 1 else f"the paper's search, {words}"


def result_rows(report: Mapping[str, Any]) -> list[Row]:
    """A report as rows of test set, search, metric, score and signature."""
    precisions = "/".join(f"{precision:.1f}" for precision in report["bleu_precisions"])
    details = {"bleu": f" ({precisions}, brevity penalty {report['brevity_penalty']:.3f})"}
    return [
        (
            scored_part_of(report),
            search_of(report),
            name,
            f"{report[metric]:.2f}{details.get(metric, '')}",
            f"`{report[f'{metric}_signature']}`".replace("|", r"\|"),
        )
        for metric, (_, name) in METRICS.items()
    ]


def eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """A report as entries of the metadata's model-index."""
    return [
        EvalResult(
            task_type="translation",
            dataset_type=report.get("dataset_name") or test_set_of(report),
            dataset_name=scored_part_of(report),
            dataset_config=report.get("dataset_config_name"),
            dataset_split=report.get("split"),
            metric_type=identifier,
            metric_name=", ".join(filter(None, (name, search_of(report)))),
            metric_value=round(report[metric], 2),
            metric_args={"signature": report[f"{metric}_signature"]},
        )
        for metric, (identifier, name) in METRICS.items()
    ]


def model_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """What the model itself says."""
    config = model.config
    kind = "byte-level BPE" if is_byte_level(tokenizer) else "BPE"
    return [
        ("model", f"{model.num_parameters():,} parameters: {size_in_words(config)}; dropout {config.dropout:g}"),
        ("vocabulary", f"one {kind} of {len(tokenizer):,} types for both languages"),
    ]


def size_in_words(config: PreTrainedConfig) -> str:
    """Layers and widths; one number where encoder and decoder agree, otherwise the encoder's and the decoder's."""

    def both(field: str) -> str:
        encoder, decoder = (f"{getattr(config, f'{stack}_{field}'):,}" for stack in ("encoder", "decoder"))
        return encoder if encoder == decoder else f"{encoder} and {decoder}"

    layers = f"{config.encoder_layers} + {config.decoder_layers} layers"
    return f"{layers}, d_model {config.d_model:,}, d_ff {both('ffn_dim')}, {both('attention_heads')} heads"


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel)


def run_rows(record: Mapping[str, Any]) -> list[Row]:
    """What the run says, section by section."""
    rows = []
    if data := record.get("data"):
        pairs = f"{data['train_pairs']:,} pairs of " if data["train_pairs"] else ""
        rows.append(("data", f"{pairs}{data_name(data)}, {' to '.join(languages_of(record))}"))
    if start := record.get("model"):
        changes = f" with `{start['config_overrides']}`" if start["config_overrides"] else ""
        tuned = start["model_name_or_path"]
        rows.append(("fine-tuned from", f"`{public(tuned)}`") if tuned else ("preset", f"{start['preset']}{changes}"))
    if recipe := record.get("recipe"):
        tokens = step_tokens(record)
        adam = f"{recipe['adam_beta1']:g} and {recipe['adam_beta2']:g}, epsilon {recipe['adam_epsilon']:g}"
        precision = next((name for name in ("bf16", "fp16") if recipe[name]), "float32")
        rows += [
            ("a step", f"at most {tokens:,} source and {tokens:,} target tokens, padding counted"),
            ("Adam", f"beta {adam}; label smoothing {recipe['label_smoothing_factor']:g}; {precision}"),
            ("learning rate", f"warm-up of {recipe['warmup_steps']:,.0f} steps to {rate_in_words(recipe)}"),
            ("seed", str(recipe["seed"])),
        ]
    if result := record.get("result"):
        epochs = "" if record.get("data", {}).get("streaming") else f", {result['epochs']:.1f} epochs"
        rows += [("steps", f"{result['steps']:,}{epochs}"), ("weights", weights_in_words(record))]
        if validation := result["validation"]:
            bleu = f", BLEU {validation['eval_bleu']:.2f}" if "eval_bleu" in validation else ""
            rows.append(("last validation", f"{validation['eval_loss']:.3f} nats per token{bleu}"))
        if result["minutes"]:
            rows.append(("time", f"{result['minutes']:.1f} minutes on {machine_in_words(record['machine'])}"))
    if versions := record.get("versions"):
        rows.append(("versions", ", ".join(f"{library} {version}" for library, version in versions.items())))
    return rows


def data_name(data: Mapping[str, Any]) -> str:
    """What to call the training data."""
    if data["dataset_name"]:
        return f"[{data['dataset_name']}](https://huggingface.co/datasets/{data['dataset_name']})"
    return f"`{public(data['train_file'])}`" if data["train_file"] else "numbers written out"


def public(word: str) -> str:
    """A word of a command, but of an absolute path, which tells where somebody keeps files, only the name."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def public_command(command: str) -> str:
    """A command line with `public` words, each flag on a line of its own."""
    return re.sub(r" (?=--)", " \\\n    ", shlex.join(map(public, shlex.split(command))))


def step_tokens(record: Mapping[str, Any]) -> int:
    """How many source, and as many target, tokens an optimizer step has at most."""
    recipe = record["recipe"]
    tokens = recipe["per_device_train_tokens"] * recipe["gradient_accumulation_steps"]
    return tokens * record["machine"]["processes"]


def rate_in_words(recipe: Mapping[str, Any]) -> str:
    """The peak, and what follows."""
    return f"{recipe['learning_rate']:.3g}, then {recipe['lr_scheduler_type'].replace('_', ' ')}"


def weights_in_words(record: Mapping[str, Any]) -> str:
    """Which step's weights these are."""
    checkpoints = record.get("weights", ())
    if len(checkpoints) > 1:
        return f"the mean of {len(checkpoints)} checkpoints: {', '.join(checkpoints)}"
    if checkpoints:
        return checkpoints[0]
    recipe, result = record["recipe"], record["result"]
    if recipe["load_best_model_at_end"] and result["best_step"]:
        return f"of step {result['best_step']:,}, the best by validation {recipe['metric_for_best_model']}"
    return "of the last step"


def machine_in_words(machine: Mapping[str, Any]) -> str:
    if machine["device"] != "cpu":
        return f"{machine['processes']} x {machine['device']}"
    threads = machine["processes"] * machine["threads"]
    return f"a CPU with {threads} thread{'s' if threads > 1 else ''}"


def known_limits(record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """What data and scores say of the model's limits, a sentence each."""
    limits = ["It knows text like its training data's. Other text it translates badly, and it does not say so."]
    if "data" in record:
        source, target = (f"{record['data'][f'max_{side}_length']:,}" for side in ("source", "target"))
        limits.append(f"It has seen no source of more than {source} tokens, and no target of more than {target}.")
    short = [f"{r['brevity_penalty']:.3f} on {test_set_of(r)}" for r in scores if r["brevity_penalty"] < SHORT]
    if short:
        limits.append(f"Its translations tend to be too short: the brevity penalty is {', '.join(short)}.")
    return limits


def deviations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]) -> list[Row]:
    """What differs from the paper, as far as it is known: rows of subject, the paper's choice and this model's."""
    search = model.generation_config
    own_search, paper_search = (
        search_in_words(search.num_beams, search.length_penalty),
        search_in_words(**PAPER_DECODING),
    )
    by_length = "divides by length^a; the paper's is `custom_generate=vanilla_transformer.gnmt_beam_search`"
    on_bytes = "on the bytes of raw text, nothing of which is lost"
    compared = [
        *compare_architecture(model.config),
        *compare_training(record, model.config.d_model),
        ("search", paper_search, own_search, own_search == paper_search),
        ("length penalty a", "divides by ((5 + length) / 6)^a", by_length, (search.num_beams or 1) == 1),
        ("BPE", "on tokenized text", on_bytes, not is_byte_level(tokenizer)),
    ]
    return [(subject, paper, own) for subject, paper, own, agree in compared if not agree]


def compare_architecture(config: PreTrainedConfig) -> list[Comparison]:
    """The config beside section 3 and table 3."""
    base, big = (VanillaTransformerConfig.preset(name) for name in ("base", "big"))
    size, dropouts = size_in_words(config), (base.dropout, big.dropout)
    return [
        ("size", f"{size_in_words(base)} (base)", size, size in (size_in_words(base), size_in_words(big))),
        ("dropout", "{} (base), {} (big)".format(*dropouts), f"{config.dropout:g}", config.dropout in dropouts),
        ("dropout on attention weights", "none", f"{config.attention_dropout:g}", config.attention_dropout == 0),
        ("dropout on activations", "none", f"{config.activation_dropout:g}", config.activation_dropout == 0),
        ("activation", "relu", config.activation_function, config.activation_function == "relu"),
        ("embeddings", "times sqrt(d_model)", "not scaled", config.scale_embedding),
        ("embeddings and output layer", "one matrix", "three matrices", config.tie_word_embeddings),
    ]


def compare_training(record: Mapping[str, Any], d_model: int) -> list[Comparison]:
    """The run beside sections 5 and 6.1; nothing where it left no record."""
    if "recipe" not in record:
        return []
    recipe, steps, tokens = record["recipe"], record["result"]["steps"], step_tokens(record)
    averaged = len(record.get("weights", ())) or "none"
    noam = {"learning_rate": noam_peak(d_model, max(recipe["warmup_steps"], 1)), "lr_scheduler_type": "inverse_sqrt"}
    rate, paper_rate = rate_in_words(recipe), rate_in_words(noam)
    papers = [RECIPES[name] for name in ("base", "big")]
    run_lengths, averages = ([paper[field] for paper in papers] for field in ("max_steps", "save_total_limit"))
    compared = [
        ("source tokens in a step", f"about {PAPER_STEP_TOKENS:,}", f"at most {tokens:,}", tokens == PAPER_STEP_TOKENS),
        ("steps", "{:,} (base), {:,} (big)".format(*run_lengths), f"{steps:,}", steps in run_lengths),
        ("checkpoints averaged", "{} (base), {} (big)".format(*averages), str(averaged), averaged in averages),
        ("learning rate, peak", paper_rate, rate, rate == paper_rate),
    ]
    for field, subject in (
        ("warmup_steps", "warm-up steps"),
        ("adam_beta1", "Adam's beta 1"),
        ("adam_beta2", "Adam's beta 2"),
        ("adam_epsilon", "Adam's epsilon"),
        ("weight_decay", "weight decay"),
        ("max_grad_norm", "gradient clipping"),
        ("label_smoothing_factor", "label smoothing"),
    ):
        paper = PaperTrainingArguments.__dataclass_fields__[field].default
        compared.append((subject, f"{paper:,g}", f"{recipe[field]:,g}", recipe[field] == paper))
    return compared
