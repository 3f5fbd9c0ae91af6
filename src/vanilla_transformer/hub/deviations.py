"""What in a model and its training differs from the paper."""

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..generation_vanilla_transformer import PAPER_DECODING
from ..training.recipe import RECIPES, PaperTrainingArguments, noam_peak
from .markdown import escape
from .provenance import Run
from .words import describe_rate, describe_search, describe_size, is_byte_level

PAPER_STEP_TOKENS = 25_000  # section 5.1, of each side

# Subject, the paper's choice, this model's, and whether they agree; the texts are Markdown.
_Comparison = tuple[str, str, str, bool]

_COMPARED_HYPERPARAMETERS = {
    "warmup_steps": "warm-up steps",
    "adam_beta1": "Adam's beta 1",
    "adam_beta2": "Adam's beta 2",
    "adam_epsilon": "Adam's epsilon",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "label_smoothing_factor": "label smoothing",
}


def list_deviations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Run) -> list[tuple[str, str, str]]:
    """List what differs from the paper, as far as it is known.

    Args:
        model: The model, whose weights are not read.
        tokenizer: Its tokenizer.
        run: Where it comes from.

    Returns:
        Rows of subject, the paper's choice and this model's, in Markdown.
    """
    search = model.generation_config
    own_search = describe_search(search.num_beams, search.length_penalty)
    paper_search = describe_search(int(PAPER_DECODING["num_beams"]), PAPER_DECODING["length_penalty"])
    by_length = "divides by length^a; the paper's is `custom_generate=vanilla_transformer.gnmt_beam_search`"
    on_bytes = "on the bytes of raw text, nothing of which is lost"
    compared = [
        *_compare_architecture(model.config),
        *_compare_training(run, model.config.d_model),
        ("search", paper_search, own_search, own_search == paper_search),
        ("length penalty a", "divides by ((5 + length) / 6)^a", by_length, (search.num_beams or 1) == 1),
        ("BPE", "on tokenized text", on_bytes, not is_byte_level(tokenizer)),
    ]
    return [(subject, paper, own) for subject, paper, own, agree in compared if not agree]


def _compare_architecture(config: PreTrainedConfig) -> list[_Comparison]:
    """Compare the config with section 3 and table 3."""
    base, big = (VanillaTransformerConfig.preset(name) for name in ("base", "big"))
    size, dropouts = describe_size(config), (base.dropout, big.dropout)
    activation = config.activation_function
    return [
        ("size", f"{describe_size(base)} (base)", size, size in (describe_size(base), describe_size(big))),
        ("dropout", "{} (base), {} (big)".format(*dropouts), f"{config.dropout:g}", config.dropout in dropouts),
        ("dropout on attention weights", "none", f"{config.attention_dropout:g}", config.attention_dropout == 0),
        ("dropout on activations", "none", f"{config.activation_dropout:g}", config.activation_dropout == 0),
        ("attention's projections", "no bias", "with a bias", False),
        ("activation", "relu", escape(activation), activation == "relu"),
        ("embeddings", "times sqrt(d_model)", "not scaled", config.scale_embedding),
        ("embeddings and output layer", "one matrix", "three matrices", config.tie_word_embeddings),
    ]


def _compare_training(run: Run, d_model: int) -> list[_Comparison]:
    """Compare the run with sections 5 and 6.1; nothing where it left no record."""
    if run.training is None:
        return []
    recipe, steps, tokens = run.training.recipe, run.training.result.steps, run.training.step_tokens
    averaged = len(run.weights) or "none"
    rate = describe_rate(recipe.learning_rate, recipe.lr_scheduler_type)
    paper_rate = describe_rate(noam_peak(d_model, int(max(recipe.warmup_steps, 1))), "inverse_sqrt")
    run_lengths, averages = (
        [RECIPES[name][field] for name in ("base", "big")] for field in ("max_steps", "save_total_limit")
    )
    compared = [
        ("source tokens in a step", f"about {PAPER_STEP_TOKENS:,}", f"at most {tokens:,}", tokens == PAPER_STEP_TOKENS),
        ("steps", "{:,} (base), {:,} (big)".format(*run_lengths), f"{steps:,}", steps in run_lengths),
        ("checkpoints averaged", "{} (base), {} (big)".format(*averages), str(averaged), averaged in averages),
        ("learning rate, peak", paper_rate, rate, rate == paper_rate),
    ]
    for field, subject in _COMPARED_HYPERPARAMETERS.items():
        paper, own = PaperTrainingArguments.__dataclass_fields__[field].default, getattr(recipe, field)
        compared.append((subject, f"{paper:,g}", f"{own:,g}", own == paper))
    return compared
