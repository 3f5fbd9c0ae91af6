"""The model card: the template `model_card.md`, filled from the model, the record of its run and its scores.

Everything that comes from a record or a report passes `markdown.escape`, `code_cell` or `command_block`: it can't be
markup, HTML or a secret.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.secrets import mask_secrets
from ..errors import UserError
from ..inference.translate import translate
from ..language_tags_vanilla_transformer import language_tag, tagged_languages
from .deviations import list_deviations
from .markdown import code_cell, command_block, escape, one_line, public_word
from .provenance import Data, Report, Run, Start, Training
from .words import describe_machine, describe_rate, describe_search, describe_size, describe_weights, is_byte_level

TEMPLATE = Path(__file__).with_name("model_card.md")
# A score of a report: the Hub's name of the metric, and the one for people.
METRICS = {"bleu": ("sacrebleu", "sacreBLEU"), "chrf": ("chrf", "chrF")}
SHORT = 0.97  # below this brevity penalty translations are called short

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_Row = tuple[str, ...]


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
    page: str | None = None,
) -> ModelCard:
    """Fill the template. What is not known is left out.

    Args:
        model: The whole model.
        tokenizer: Its tokenizer.
        model_id: What the card's code loads: the repository's id, or a folder.
        record: The record of its run, see `training.record.read_record`.
        scores: Reports of `vanilla-transformer evaluate --json`, see `read_scores`.
        title: The heading; by default the languages.
        about: On the data and the purpose, in Markdown.
        limits: What else the model is not good for, in Markdown.
        example: A source sentence; the card shows the model's translation of it.
        license: The license of the weights, by the Hub's name for it, such as "apache-2.0".
        page: Path of the illustrated page beside the model, if there is one.

    Raises:
        UserError: The record or a report lacks a value or has one of another type.
    """
    run = Run.from_record(record or {})
    reports = [Report.from_mapping(report) for report in scores]
    tags = list(map(language_tag, tagged_languages(tokenizer)))
    translations = None
    if example:
        if tags and not example.startswith(tuple(tags)):
            example = f"{tags[0]} {example}"
        (found,) = translate(model, tokenizer, [example], search=None)
        translations = [mask_secrets(translation.text) for translation in found]
    try:
        command = command_block(run.command) if run.command else None
    except ValueError as error:
        raise UserError(f"the record of the run has a command that no shell can read: {error}") from error
    search = model.generation_config
    return ModelCard.from_template(
        _make_metadata(run, reports, one_line(model_id.rpartition("/")[2]), license),
        template_path=str(TEMPLATE),
        title=escape(title or (f"Translation from {run.data.direction}" if run.data else model_id)),
        about=mask_secrets(about or ""),
        tied=model.config.tie_word_embeddings,
        page=page,
        model_id=json.dumps(one_line(model_id), ensure_ascii=False),
        example=json.dumps(mask_secrets(example or " ".join([*tags[:1], "..."])), ensure_ascii=False),
        translations=translations,
        tags=", ".join(map(code_cell, tags)),
        search=describe_search(search.num_beams, search.length_penalty),
        run=[*_model_rows(model, tokenizer), *_run_rows(run)],
        command=command,
        results=[row for report in reports for row in _result_rows(report)],
        deviations=list_deviations(model, tokenizer, run),
        limits=[*_known_limits(run, reports), *([mask_secrets(limits)] if limits else [])],
    )


def _make_metadata(run: Run, reports: Sequence[Report], model_name: str, license: str | None) -> ModelCardData:
    """Make the card's head, which the Hub reads; names that no repository can have are left out."""
    data, start = run.data or Data("", "", 0, 0), run.start or Start()
    results = [result for report in reports for result in _eval_results(report)]
    codes = [language for language in data.languages if re.fullmatch("[a-z]{2,3}", language)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="translation",
        license=license,
        language=codes or None,
        base_model=_hub_id(start.model_name_or_path) if start.from_hub else None,
        datasets=[name for name in map(_hub_id, data.dataset_names) if name] or None,
        tags=[VanillaTransformerConfig.model_type, "attention-is-all-you-need"],
        metrics=[name for name, _ in METRICS.values()] if results else None,
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def _hub_id(name: str | None) -> str | None:
    """Return the name if a repository of the Hub can have it and it holds no secret."""
    return name if name and _HUB_ID.fullmatch(name) and mask_secrets(name) == name else None


def _result_rows(report: Report) -> list[_Row]:
    """Rows of test set, search, metric, score and signature."""
    precisions = "/".join(f"{precision:.1f}" for precision in report.bleu_precisions)
    details = {"bleu": f" ({precisions}, brevity penalty {report.brevity_penalty:.3f})"}
    return [
        (
            escape(report.scored_part),
            _describe_scored_search(report),
            name,
            f"{getattr(report, metric):.2f}{details.get(metric, '')}",
            code_cell(getattr(report, f"{metric}_signature")),
        )
        for metric, (_, name) in METRICS.items()
    ]


def _eval_results(report: Report) -> list[EvalResult]:
    """Entries of the metadata's model-index."""

    def clean(text: str | None) -> str | None:  # pages of the Hub show it
        return None if text is None else re.sub(r"[<>`\[\]]", "", one_line(mask_secrets(text)))

    return [
        EvalResult(
            task_type="translation",
            dataset_type=clean(report.dataset_name or report.test_set) or "",
            dataset_name=clean(report.scored_part) or "",
            dataset_config=clean(report.dataset_config_name),
            dataset_split=clean(report.split),
            metric_type=identifier,
            metric_name=", ".join(filter(None, (name, _describe_scored_search(report)))),
            metric_value=round(getattr(report, metric), 2),
            metric_args={"signature": clean(getattr(report, f"{metric}_signature"))},
        )
        for metric, (identifier, name) in METRICS.items()
    ]


def _describe_scored_search(report: Report) -> str:
    """Describe how the scored translations were searched for, where the report says it."""
    if report.decoding is None:
        return ""
    words = describe_search(report.num_beams, report.decoding.length_penalty)
    return words if report.num_beams == 1 else f"the paper's search, {words}"


def _model_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[_Row]:
    """Describe the model itself."""
    config = model.config
    kind = "byte-level BPE" if is_byte_level(tokenizer) else "BPE"
    tags = tagged_languages(tokenizer)
    return [
        ("model", f"{model.num_parameters():,} parameters: {describe_size(config)}; dropout {config.dropout:g}"),
        ("vocabulary", f"one {kind} of {len(tokenizer):,} types for {'all' if tags else 'both'} languages"),
    ]


def _run_rows(run: Run) -> list[_Row]:
    """Describe the run, section by section."""
    rows: list[_Row] = []
    if data := run.data:
        pairs = f"{data.train_pairs:,} pairs of " if data.train_pairs else ""
        rows.append(("data", f"{pairs}{_describe_data(data)}, {escape(data.direction)}"))
        if data.train_weights:
            rows.append(("weights of the corpora", ", ".join(f"{weight:g}" for weight in data.train_weights)))
        if data.bpe_dropout:
            rows.append(("BPE-dropout in training", f"{data.bpe_dropout:g}"))
    if start := run.start:
        if start.model_name_or_path:
            rows.append(("fine-tuned from", code_cell(public_word(start.model_name_or_path))))
        else:
            changes = f" with {code_cell(start.config_overrides)}" if start.config_overrides else ""
            rows.append(("preset", f"{escape(start.preset or 'none')}{changes}"))
    if run.training:
        streaming = run.data is not None and run.data.streaming
        rows += _recipe_rows(run.training) + _result_of_run_rows(run, run.training, streaming)
    if run.versions:
        versions = [f"{escape(library)} {escape(version)}" for library, version in run.versions.items()]
        rows.append(("versions", ", ".join(versions)))
    return rows


def _recipe_rows(training: Training) -> list[_Row]:
    """Describe the training arguments."""
    recipe, tokens = training.recipe, training.step_tokens
    adam = f"{recipe.adam_beta1:g} and {recipe.adam_beta2:g}, epsilon {recipe.adam_epsilon:g}"
    precision = "bf16" if recipe.bf16 else "fp16" if recipe.fp16 else "float32"
    rate = describe_rate(recipe.learning_rate, recipe.lr_scheduler_type)
    averaged = [("moving average of the weights", f"decay {recipe.ema_decay:g}")] if recipe.ema_decay else []
    return [
        ("a step", f"at most {tokens:,} source and {tokens:,} target tokens, padding counted"),
        ("Adam", f"beta {adam}; label smoothing {recipe.label_smoothing_factor:g}; {precision}"),
        ("learning rate", f"warm-up of {recipe.warmup_steps:,.0f} steps to {rate}"),
        *averaged,
        ("seed", str(recipe.seed)),
    ]


def _result_of_run_rows(run: Run, training: Training, streaming: bool) -> list[_Row]:
    """Describe how training ended."""
    result = training.result
    epochs = "" if streaming or result.epochs is None else f", {result.epochs:.1f} epochs"
    rows: list[_Row] = [("steps", f"{result.steps:,}{epochs}"), ("weights", describe_weights(run))]
    if result.stopped:
        rows.insert(1, ("end", escape(result.stopped)))
    if validation := result.validation:
        bleu = f", BLEU {validation.eval_bleu:.2f}" if validation.eval_bleu is not None else ""
        rows.append(("last validation", f"{validation.eval_loss:.3f} nats per token{bleu}"))
    if result.minutes:
        rows.append(("time", f"{result.minutes:.1f} minutes on {describe_machine(training.machine)}"))
    return rows


def _describe_data(data: Data) -> str:
    """Name the training data; a data set of the Hub is a link."""
    links = {name: f"[{escape(name)}](https://huggingface.co/datasets/{name})" for name in data.dataset_names}
    names = [links[name] if _hub_id(name) and name in links else code_cell(public_word(name)) for name in data.names]
    return ", ".join(names) or "numbers written out"


def _known_limits(run: Run, reports: Sequence[Report]) -> list[str]:
    """Say what data and scores show of the model's limits, a sentence each."""
    limits = ["It knows text like its training data's. Other text it translates badly, and it does not say so."]
    if run.data:
        source, target = f"{run.data.max_source_length:,}", f"{run.data.max_target_length:,}"
        limits.append(f"It has seen no source of more than {source} tokens, and no target of more than {target}.")
    short = [
        f"{report.brevity_penalty:.3f} on {escape(report.test_set)}"
        for report in reports
        if report.brevity_penalty < SHORT
    ]
    if short:
        limits.append(f"Its translations tend to be too short: the brevity penalty is {', '.join(short)}.")
    return limits
