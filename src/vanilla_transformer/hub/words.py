"""Phrases for a model card, in Markdown: a search, a size, a schedule, the weights, a machine."""

from tokenizers.decoders import ByteLevel
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .markdown import escape
from .provenance import Machine, Run


def describe_search(num_beams: int | None, length_penalty: float | None) -> str:
    """Describe a search; None is what `generate()` does by default."""
    if (num_beams or 1) == 1:
        return "greedy search"
    return f"beam {num_beams} and length penalty {1.0 if length_penalty is None else length_penalty:g}"


def describe_size(config: PreTrainedConfig) -> str:
    """Describe layers and widths; one number where encoder and decoder agree, otherwise both."""

    def both(field: str) -> str:
        encoder, decoder = (f"{getattr(config, f'{stack}_{field}'):,}" for stack in ("encoder", "decoder"))
        return encoder if encoder == decoder else f"{encoder} and {decoder}"

    layers = f"{config.encoder_layers} + {config.decoder_layers} layers"
    return f"{layers}, d_model {config.d_model:,}, d_ff {both('ffn_dim')}, {both('attention_heads')} heads"


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer splits the bytes of raw text."""
    return isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel)


def describe_rate(peak: float, schedule: str) -> str:
    """Describe the peak of the learning rate, and how it falls."""
    return f"{peak:.3g}, then {escape(schedule.replace('_', ' '))}"


def describe_weights(run: Run) -> str:
    """Describe which step's weights a model has."""
    names = [escape(name) for name in run.weights]
    if len(names) > 1:
        return f"the mean of {len(names)} checkpoints: {', '.join(names)}"
    if names:
        return names[0]
    if run.training and run.training.recipe.load_best_model_at_end and run.training.result.best_step:
        metric = escape(run.training.recipe.metric_for_best_model or "loss")
        return f"of step {run.training.result.best_step:,}, the best by validation {metric}"
    return "of the last step"


def describe_machine(machine: Machine) -> str:
    """Describe what a model was trained on."""
    if machine.device != "cpu":
        return f"{machine.processes} x {escape(machine.device)}"
    threads = machine.processes * machine.threads
    return f"a CPU with {threads} thread{'s' if threads > 1 else ''}"
