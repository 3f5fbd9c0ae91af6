"""What happens to each training argument: its range, and whether it is obeyed, refused or without effect."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, TrainingArguments

from ..errors import UserError


@dataclass(frozen=True)
class Range:
    """The values that a number may have.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        above: Whether the value must be above `low`, not equal to it.
        below: Whether the value must be below `high`, not equal to it.
        whole: Whether the value must be a whole number.
        whole_from_1: Whether a value of at least 1 must be a whole number.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    whole_from_1: bool = False

    def __str__(self) -> str:
        """Describe the range, as in "a whole number of at least 1"."""
        number = "a whole number" if self.whole else "a number"
        words = f"{number} {'above' if self.above else 'of at least'} {self.low:g}"
        if self.high < math.inf:
            words += f" and {'below' if self.below else 'at most'} {self.high:.10g}"
        return words + (", and whole from 1 on" if self.whole_from_1 else "")

    def __contains__(self, value: object) -> bool:
        """Return whether a value is in the range; NaN, infinity and what is not a number never are."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if value < self.low or value > self.high:
            return False
        if (self.above and value == self.low) or (self.below and value == self.high):
            return False
        return value == int(value) or not (self.whole or (self.whole_from_1 and value >= 1))


EPOCHS = Range(0, above=True)
COUNT, COUNT_OR_NONE = Range(1, whole=True), Range(0, whole=True)
FRACTION = Range(0, 1, below=True)
INTERVAL = Range(0, above=True, whole_from_1=True)  # in steps, or below 1 as a share of all steps
SEED = Range(0, 2**32 - 1, whole=True)  # of numpy

RANGES: dict[str, Range] = {
    "per_device_train_tokens": COUNT,
    "per_device_eval_tokens": COUNT,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "learning_rate": Range(0, above=True),
    "warmup_steps": Range(0, whole_from_1=True),
    "weight_decay": Range(0),
    "adam_beta1": FRACTION,
    "adam_beta2": FRACTION,
    "adam_epsilon": Range(0),
    "max_grad_norm": Range(0),
    "label_smoothing_factor": FRACTION,
    "ema_decay": Range(0, 1, above=True, below=True),
    "max_minutes": Range(0, above=True),
    "early_stopping_patience": COUNT,
    "early_stopping_threshold": Range(0),
    "neftune_noise_alpha": Range(0),
    "torch_empty_cache_steps": COUNT,
    "logging_steps": INTERVAL,
    "eval_steps": INTERVAL,
    "eval_delay": Range(0),
    "eval_accumulation_steps": COUNT,
    "save_steps": INTERVAL,
    "save_total_limit": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": COUNT_OR_NONE,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "generation_max_length": Range(2, whole=True),  # the start token counts
    "generation_num_beams": COUNT,
}

CHOICES: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}

# Arguments that this trainer can't obey: the values that it takes, and why.
ONE_METRIC = "metrics are computed over the whole validation set at once"
SIMILAR_LENGTHS = "a batch always holds pairs of similar length, and batches come in random order"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": ((False,), "batches have a token budget; lower per_device_train_tokens to save memory"),
    "train_sampling_strategy": (("random",), SIMILAR_LENGTHS),
    "sortish_sampler": ((False,), SIMILAR_LENGTHS),
    "dataloader_drop_last": ((False,), "every sentence pair is used once in an epoch"),
    "label_names": ((None, ["labels"]), "the model's labels are called labels"),
    "debug": (("", []), "the library's debugger can't examine masks"),
    "use_liger_kernel": ((False,), "Liger has no kernels for this model"),
    "eval_do_concat_batches": ((True,), ONE_METRIC),
    "batch_eval_metrics": ((False,), ONE_METRIC),
    "push_to_hub": ((False,), "train first, then use vanilla-transformer push"),
    "enable_jit_checkpoint": ((False,), "SaveOnInterrupt, which the command has, saves a checkpoint on SIGTERM"),
}

# Arguments without effect, and why.
NO_PUSH = "training does not push to the Hub"
NO_EFFECT: dict[str, str] = {
    "per_device_train_batch_size": "the size of a batch is per_device_train_tokens",
    "length_column_name": SIMILAR_LENGTHS,
    "remove_unused_columns": "the collator reads the columns that it needs",
    "use_cache": "the model's own use_cache stays",
    "liger_kernel_config": "Liger has no kernels for this model",
    "do_train": "this command trains",
    "do_eval": "eval_strategy decides when to validate",
    "do_predict": "another command evaluates on test sets",
    "local_rank": "the launcher gives each process its rank",
    "eval_use_gather_object": "validation gathers tensors",
    "include_for_metrics": "the metrics compare translations with references",
    "fp16_full_eval": "validation during training has the precision of training",
    "bf16_full_eval": "validation during training has the precision of training",
    "restore_callback_states_from_checkpoint": "no callback has a state",
    "hub_token": NO_PUSH,
    "hub_model_id": NO_PUSH,
    "hub_strategy": NO_PUSH,
    "hub_private_repo": NO_PUSH,
    "hub_always_push": NO_PUSH,
    "hub_revision": NO_PUSH,
}

# What transformers takes from optim_args, of the optimizers that it silently gives nothing else to.
OPTIM_ARGS = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
WITHOUT_OPTIM_ARGS = "adamw_torch(_fused|_xla|_npu_fused)?|adafactor|(paged_)?adamw(_bnb)?_(8|32)bit|.*lion.*|.*lomo"


def _is_adam(optim: str) -> bool:
    """Return whether an optimizer takes Adam's betas and epsilon; transformers gives GaLore's and GrokAdamW none."""
    return ("adam" in optim or "ademamix" in optim) and not optim.startswith(("galore", "grok"))


FOLLOWING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # their rates follow the metric for the best model

# Arguments that have an effect only together with others: the condition, and why there is none without it.
Condition = Callable[[Any], bool]
CONDITIONAL: dict[tuple[str, ...], tuple[Condition, str]] = {
    ("adam_beta1", "adam_beta2"): (lambda a: _is_adam(a.optim) or "lion" in a.optim, "optim is neither Adam nor Lion"),
    ("adam_epsilon",): (lambda a: _is_adam(a.optim), "optim is not Adam"),
    ("optim_args",): (
        lambda a: not re.fullmatch(WITHOUT_OPTIM_ARGS, OptimizerNames(a.optim).value),
        "optim has no further arguments",
    ),
    ("optim_target_modules",): (
        lambda a: any(name in a.optim for name in ("galore", "apollo")),
        "optim is neither GaLore nor APOLLO",
    ),
    ("warmup_steps",): (
        lambda a: a.lr_scheduler_type not in ("constant", *FOLLOWING_SCHEDULES),
        "lr_scheduler_type has no warm-up",
    ),
    ("lr_scheduler_kwargs",): (
        lambda a: a.lr_scheduler_type not in ("constant", "constant_with_warmup"),
        "lr_scheduler_type has no further arguments",
    ),
    ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"): (
        lambda a: bool(a.report_to),
        "report_to names no tracker",
    ),
    ("logging_steps",): (lambda a: a.logging_strategy == "steps", "logging_strategy is not steps"),
    ("eval_steps",): (lambda a: a.eval_strategy == "steps", "eval_strategy is not steps"),
    ("save_steps",): (lambda a: a.save_strategy == "steps", "save_strategy is not steps"),
    ("save_total_limit", "save_only_model", "save_on_each_node"): (
        lambda a: a.save_strategy != "no",
        "no checkpoints are saved",
    ),
    (
        *("eval_delay", "metric_for_best_model", "greater_is_better", "predict_with_generate", "prediction_loss_only"),
        *("per_device_eval_batch_size", "per_device_eval_tokens", "eval_accumulation_steps"),
    ): (lambda a: a.eval_strategy != "no", "there is no validation"),
    ("generation_max_length", "generation_num_beams", "generation_config"): (
        lambda a: a.eval_strategy != "no" and a.predict_with_generate and not a.prediction_loss_only,
        "validation does not translate",
    ),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"): (
        lambda a: a.gradient_checkpointing or getattr(a, "activation_checkpointing", False),
        "activations are not checkpointed",
    ),
    ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_in_order"): (
        lambda a: a.dataloader_num_workers > 0,
        "dataloader_num_workers is 0",
    ),
    ("early_stopping_threshold",): (
        lambda a: a.early_stopping_patience is not None,
        "early_stopping_patience is not given",
    ),
    ("fsdp_config",): (lambda a: bool(a.fsdp), "fsdp is off"),
    (
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout", "average_tokens_across_devices", "log_on_each_node", "log_level_replica"),
    ): (lambda a: a.world_size > 1, "there is one process"),
    ("ignore_data_skip",): (lambda a: a.resume_from_checkpoint is not None, "the run is not resumed"),
}

# Arguments that are obeyed as by the stock trainer, or as `PaperTrainingArguments` says.
OBEYED = frozenset(
    (
        *("output_dir", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type"),
        *(
            "optim",
            "weight_decay",
            "gradient_accumulation_steps",
            "max_grad_norm",
            "bf16",
            "fp16",
            "tf32",
        ),
        *("label_smoothing_factor", "activation_checkpointing", "gradient_checkpointing", "torch_compile"),
        *("torch_compile_backend", "torch_compile_mode", "neftune_noise_alpha", "torch_empty_cache_steps"),
        *("logging_strategy", "logging_first_step", "logging_nan_inf_filter", "include_num_input_tokens_seen"),
        *("log_level", "disable_tqdm", "report_to", "eval_strategy", "eval_on_start", "save_strategy"),
        *("load_best_model_at_end", "full_determinism", "seed", "data_seed", "use_cpu"),
        *("accelerator_config", "parallelism_config", "dataloader_num_workers", "dataloader_pin_memory"),
        *("dataloader_prefetch_factor", "fsdp", "deepspeed", "skip_memory_metrics", "resume_from_checkpoint"),
        *("per_device_train_tokens", "ema_decay", "max_minutes", "early_stopping_patience"),
    )
)

LOWER_IS_BETTER = ("loss", "perplexity")
TRANSLATION_METRICS = ("bleu", "chrf", "exact_match")


def metric_name(metric: str) -> str:
    """Return the name of a metric without the prefix "eval_"."""
    return metric.removeprefix("eval_")


def check_values(args: Any) -> None:
    """Check the ranges and choices of single arguments, and refuse what this trainer can't do.

    Args:
        args: Training arguments as they were given, before transformers converts them.

    Raises:
        UserError: With the argument, its value and what is allowed.
    """
    for name, allowed in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and value not in allowed:
            raise UserError(f"{name} is {value}; it must be {allowed}")
    for name, choices in CHOICES.items():
        value, values = getattr(args, name), [choice.value for choice in choices]
        if value not in values and not isinstance(value, choices):
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(str, values))}")
    for name, (accepted, reason) in REFUSED.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            raise UserError(f"{name} is {value!r}; it must be {' or '.join(map(repr, accepted))}: {reason}")


def check_combinations(args: TrainingArguments) -> None:
    """Refuse arguments that contradict each other.

    Args:
        args: Training arguments after `check_values`, converted by transformers.

    Raises:
        UserError: With both arguments and the remedy.
    """
    if args.dataloader_persistent_workers and args.dataloader_num_workers == 0:
        raise UserError(
            "dataloader_persistent_workers is set, but dataloader_num_workers is 0; it must be at least 1, or leave "
            "out dataloader_persistent_workers"
        )
    optim = OptimizerNames(args.optim).value
    for argument in (args.optim_args or "").split(",") if optim in OPTIM_ARGS else []:
        key, equals, _ = argument.partition("=")
        if equals and key.strip() not in OPTIM_ARGS[optim]:
            taken = ", ".join(OPTIM_ARGS[optim])
            raise UserError(f"optim_args has {key.strip()}, but {optim} takes only {taken}; leave it out")
    if args.save_strategy == SaveStrategy.BEST and args.eval_strategy == IntervalStrategy.NO:
        raise UserError(
            "save_strategy is best, but eval_strategy is no, so that nothing would tell which checkpoint is the best; "
            "set eval_strategy to steps or epoch, or save_strategy to steps"
        )
    patience = getattr(args, "early_stopping_patience", None)
    for name, purpose in (("eval_strategy", "tell when to stop"), ("save_strategy", "keep the best checkpoint")):
        if patience is not None and getattr(args, name) == "no":
            raise UserError(
                f"early_stopping_patience is {patience}, but {name} is no, so that nothing would {purpose}; set {name} "
                "to steps or epoch, or leave out early_stopping_patience"
            )
    decay = getattr(args, "ema_decay", None)
    for name in ("fsdp", "deepspeed"):
        if decay is not None and getattr(args, name):
            raise UserError(
                f"ema_decay is {decay}, but {name} divides the weights among the processes, which an average is not "
                f"made for; leave out ema_decay and average checkpoints, or leave out {name}"
            )
    if args.torch_compile:
        backends, modes = torch._dynamo.list_backends(exclude_tags=()), list(torch._inductor.list_mode_options())
        for name, known in (("torch_compile_backend", backends), ("torch_compile_mode", [*modes, None])):
            if getattr(args, name) not in known:
                raise UserError(f"{name} is {getattr(args, name)!r}; it must be one of {', '.join(map(str, known))}")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            raise UserError(
                f"accelerator_config has {name}; leave it out: each process makes its own batches by token budget"
            )


def check_metric(args: Any, target_langs: Sequence[str] = ()) -> None:
    """Refuse a metric for the best model that the train command's validation does not compute.

    Args:
        args: The training arguments.
        target_langs: The target languages; several have metrics of their own, such as "bleu_de".

    Raises:
        UserError: With the metric and those that there are.
    """
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    translates = args.predict_with_generate and not args.prediction_loss_only
    languages = target_langs if len(target_langs) > 1 else ()
    of_translations = [*TRANSLATION_METRICS, *(f"{name}_{lang}" for lang in languages for name in TRANSLATION_METRICS)]
    names = [*LOWER_IS_BETTER, *(of_translations if translates else ())]
    if metric_name(metric) in names:
        return
    why = ""
    if metric_name(metric) in of_translations:
        option = "predict_with_generate is False" if not args.predict_with_generate else "prediction_loss_only is True"
        why = f" as {option}"
    raise UserError(f"metric_for_best_model is {metric!r}; it must be one of {', '.join(names)}{why}")


def describe_fate(name: str) -> str:
    """Describe what happens to a training argument, for the documentation.

    Args:
        name: Name of the argument.
    """
    if name in REFUSED:
        accepted, reason = REFUSED[name]
        return f"must be {' or '.join(map(repr, accepted))}: {reason}"
    if name in NO_EFFECT:
        return f"without effect: {NO_EFFECT[name]}"
    words = [str(RANGES[name])] if name in RANGES else []
    words += [f"one of {', '.join(str(choice.value) for choice in CHOICES[name])}"] if name in CHOICES else []
    words += [f"without effect if {reason}" for names, (_, reason) in CONDITIONAL.items() if name in names]
    return "; ".join(["obeyed", *words])


def find_ineffective(args: Any, given: Iterable[str], further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the reason for each argument that was given and has no effect, by name.

    Args:
        args: The training arguments.
        given: Names of the arguments that were given explicitly.
        further: Reasons why other arguments have no effect, by name.
    """
    reasons = NO_EFFECT | dict(further or {})
    for names, (has_effect, reason) in CONDITIONAL.items():
        if not has_effect(args):
            reasons |= dict.fromkeys(names, reason)
    return {name: reasons[name] for name in sorted(set(given)) if name in reasons}
