"""The model that training begins with: new, to be fine-tuned, or of a checkpoint."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.tokenization import PreTrainedTokenizerFast, add_language_tags, special_token_ids, train_tokenizer
from ..errors import UserError
from ..generation_vanilla_transformer import paper_generation_config
from ..inference.loading import load, read_tokenizer
from ..language_tags_vanilla_transformer import tagged_languages
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

# Fields of the config that can change when a model is fine-tuned: no weight depends on them.
FREE_FIELDS = ("dropout", "attention_dropout", "activation_dropout")


def load_or_create(
    *,
    model_name_or_path: str | None,
    preset: str,
    config_overrides: str | None,
    tokenizer_name: str | None,
    vocab_size: int,
    checkpoint: str | None,
    sentences: Iterable[str],
    target_langs: Sequence[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model and tokenizer of a checkpoint or of the model to fine-tune; otherwise create new ones.

    A new model uses the paper's beam search by default.

    Args:
        model_name_or_path: The model to fine-tune, or None.
        preset: Size of a new model.
        config_overrides: Changes to the config; when fine-tuning, to dropout only.
        tokenizer_name: Tokenizer of a new model, or None to train one on the pairs.
        vocab_size: Number of types of a new tokenizer.
        checkpoint: The checkpoint to continue from, or None.
        sentences: The sentences of the training pairs, which are read only to train a tokenizer.
        target_langs: The target languages, each once. If there are several, or the tokenizer has tags already, each
            has a tag; a model to fine-tune gets a row for each new one.

    Raises:
        UserError: The model or tokenizer can't be loaded, the config is invalid, or a language can't be a tag.
    """
    model: PreTrainedModel
    tokenizer: Any
    if checkpoint is not None:
        return load(checkpoint)  # type: ignore[return-value] # the tokenizer is a fast one
    if model_name_or_path is not None:
        model, tokenizer = load(model_name_or_path)
        add_missing_tags(tokenizer, target_langs)
        if len(tokenizer) > model.config.vocab_size:
            # Rows as a new model's: the mean of all others (transformers' default) is no better start for a tag.
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return override_dropout(model, config_overrides) if config_overrides else model, tokenizer
    if tokenizer_name is not None:
        tokenizer = read_tokenizer(tokenizer_name)
        add_missing_tags(tokenizer, target_langs)
    else:
        tokenizer = train_tokenizer(sentences, vocab_size, target_langs if len(target_langs) > 1 else ())
        tokenizer = broadcast_object_list([tokenizer])[0]  # one for all processes
    token_ids = special_token_ids(tokenizer)
    types = max(len(tokenizer), *(index + 1 for index in tokenizer.get_vocab().values()))
    config = VanillaTransformerConfig.preset(preset, vocab_size=types, **token_ids)
    if config_overrides:
        update_config(config, config_overrides)
        for name, token_id in token_ids.items():
            if getattr(config, name) != token_id:
                raise UserError(
                    f"config_overrides {config_overrides}: {name} is {token_id} in the tokenizer; leave it out"
                )
    model = VanillaTransformerForConditionalGeneration(config)
    model.generation_config = paper_generation_config(model)
    return model, tokenizer


def add_missing_tags(tokenizer: PreTrainedTokenizerFast, target_langs: Sequence[str]) -> None:
    """Add the tags of target languages, if there are several or the tokenizer has tags already.

    Raises:
        UserError: A language can't be a tag.
    """
    if len(target_langs) > 1 or tagged_languages(tokenizer):
        add_language_tags(tokenizer, target_langs)


def update_config(config: VanillaTransformerConfig, overrides: str) -> None:
    """Change fields of a config.

    Args:
        config: The config, which is changed.
        overrides: The changes, such as "encoder_layers=3,dropout=0.2".

    Raises:
        UserError: There is no such field, or the value is not allowed.
    """
    try:
        config.update_from_string(overrides)
        config.validate_architecture()
    except (ValueError, TypeError) as error:
        raise UserError(f"config_overrides {overrides}: {error}") from error


def override_dropout(model: PreTrainedModel, overrides: str) -> PreTrainedModel:
    """Return a model with the same weights and other dropout.

    Raises:
        UserError: The overrides change more than dropout.
    """
    config: Any = copy.deepcopy(model.config)
    update_config(config, overrides)
    before, after = model.config.to_dict(), config.to_dict()
    changed = [name for name in after if after[name] != before.get(name) and name not in FREE_FIELDS]
    if changed:
        raise UserError(
            f"config_overrides {overrides}: {changed[0]} is {before.get(changed[0])} in the model, and can't change "
            f"when it is fine-tuned; only {', '.join(FREE_FIELDS)} can"
        )
    changed_model: Any = type(model)(config).to(dtype=model.dtype)  # type: ignore[call-arg] # torch's `to` is decorated
    changed_model.load_state_dict(model.state_dict())
    changed_model.generation_config = model.generation_config
    return changed_model.to(model.device).eval()


def check_unchanged_model(given: dict[str, Any], before: dict[str, Any], checkpoint: str) -> None:
    """Refuse options of the model that differ from those of the run that is resumed.

    Args:
        given: The options of the command line.
        before: The options of the model in the checkpoint.
        checkpoint: Name of the checkpoint.

    Raises:
        UserError: With the option, its value and that of the checkpoint.
    """
    for name, value in before.items():
        if name in given and given[name] != value:
            raise UserError(
                f"{name} is {given[name]}, but {checkpoint} was trained with {value}; leave out {name} to resume, or "
                "start a new run in another folder"
            )
