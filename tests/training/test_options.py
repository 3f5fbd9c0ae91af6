"""Every training argument is obeyed, refused with its allowed values, or reported as without effect."""

import math
from dataclasses import fields

import pytest
from transformers import Seq2SeqTrainingArguments

from vanilla_transformer.errors import UserError
from vanilla_transformer.training.options import (
    CHOICES,
    CONDITIONAL,
    NO_EFFECT,
    OBEYED,
    RANGES,
    REFUSED,
    Range,
    check_metric,
    describe_fate,
    find_ineffective,
)
from vanilla_transformer.training.recipe import PaperTrainingArguments

NAMES = {item.name for item in fields(PaperTrainingArguments)} | {
    item.name for item in fields(Seq2SeqTrainingArguments)
}


def make_arguments(**changes) -> PaperTrainingArguments:
    return PaperTrainingArguments(**({"output_dir": "unused", "use_cpu": True} | changes))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_argument_has_one_fate(name):
    """A new argument of a new release of transformers has none, and fails here."""
    conditional = {name for names in CONDITIONAL for name in names}
    fates = [name in group for group in (OBEYED, REFUSED, NO_EFFECT, conditional)]
    assert sum(fates) == 1


NUMBERS = {item.name for item in fields(Seq2SeqTrainingArguments) if type(item.default) in (int, float)}


@pytest.mark.parametrize("name", sorted(NUMBERS - {"max_steps", "num_train_epochs", "local_rank"}))
def test_each_number_has_a_range(name):
    """The length of the run has its own checks, and the rank no effect."""
    assert name in RANGES


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.5, "many", True])
def test_numbers_out_of_range_are_refused_with_name_value_and_range(name, value):
    with pytest.raises(UserError) as error:
        make_arguments(**{name: value})
    assert str(error.value).startswith(f"{name} is {value}; it must be a")


@pytest.mark.parametrize("name", sorted(name for name, allowed in RANGES.items() if 0 not in allowed))
def test_zero_is_refused_where_it_has_no_meaning(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be a"):
        make_arguments(**{name: 0})


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2", "label_smoothing_factor"])
@pytest.mark.parametrize("value", [1, 1.5, 2])
def test_shares_are_below_one(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}; it must be a number of at least 0 and below 1"):
        make_arguments(**{name: value})


@pytest.mark.parametrize("name", ["eval_steps", "save_steps", "logging_steps", "warmup_steps"])
def test_intervals_are_whole_steps_or_a_share_of_all_steps(name):
    with pytest.raises(UserError, match=f"{name} is 1.5; it must be .* whole from 1 on"):
        make_arguments(**{name: 1.5})
    assert 0.5 in RANGES[name] and 3.0 in RANGES[name]


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_unknown_choices_are_refused_with_those_that_there_are(name):
    with pytest.raises(UserError) as error:
        make_arguments(**{name: "nonsense"})
    assert str(error.value).startswith(f"{name} is 'nonsense'; it must be one of ")
    assert all(choice.value in str(error.value) for choice in CHOICES[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_this_trainer_can_not_obey_is_refused_with_the_reason(name):
    allowed, reason = REFUSED[name]
    other = {True: False, False: True, None: ["target"], "random": "sequential", "": "underflow_overflow"}[allowed[0]]
    with pytest.raises(UserError) as error:
        make_arguments(**{name: other})
    assert str(error.value).startswith(f"{name} is {other!r}; it must be ") and str(error.value).endswith(reason)
    make_arguments(**{name: allowed[-1]})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adam_beta2", "obeyed; a number of at least 0 and below 1; without effect if optim is neither Adam nor"),
        ("sortish_sampler", "must be False: a batch always holds pairs of similar length, and batches come in random"),
        ("use_cache", "without effect: the model's own use_cache stays"),
        ("eval_strategy", "obeyed; one of no, steps, epoch"),
        ("report_to", "obeyed"),
    ],
)
def test_the_fate_of_an_argument_is_described(name, words):
    assert describe_fate(name).startswith(words)


def test_ranges_describe_themselves():
    assert str(Range(0, 1, below=True)) == "a number of at least 0 and below 1"
    assert str(Range(0, above=True)) == "a number above 0"
    assert str(Range(1, whole=True)) == "a whole number of at least 1"


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_an_argument_without_effect_is_reported_only_if_it_was_given(name):
    assert find_ineffective(make_arguments(), [name]) == {name: NO_EFFECT[name]}
    assert find_ineffective(make_arguments(), []) == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"optim": "sgd"}, "adam_beta2"),
        ({"lr_scheduler_type": "constant"}, "warmup_steps"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "warmup_steps"),
        ({"lr_scheduler_type": "greedy"}, "warmup_steps"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "lr_scheduler_kwargs"),
        ({"optim": "lion_32bit"}, "adam_epsilon"),
        ({"optim": "lion_32bit"}, "optim_args"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "adam_beta1"),
        ({"eval_strategy": "no"}, "eval_delay"),
        ({"eval_strategy": "no"}, "generation_num_beams"),
        ({"predict_with_generate": False}, "generation_num_beams"),
        ({"logging_strategy": "epoch"}, "logging_steps"),
        ({"save_strategy": "no"}, "save_total_limit"),
        ({}, "run_name"),
        ({}, "ddp_timeout"),
        ({}, "ignore_data_skip"),
    ],
)
def test_an_argument_that_needs_another_is_reported_without_it(changes, name):
    assert list(find_ineffective(make_arguments(**changes), [name])) == [name]


@pytest.mark.parametrize(
    ("optim", "name"),
    [("lion_32bit", "adam_beta2"), ("ademamix", "adam_beta1"), ("ademamix", "adam_epsilon"), ("ademamix", "optim_args")]
    + [("schedule_free_radam", "adam_beta1"), ("adamw_torch_8bit", "optim_args"), ("sgd", "optim_args")],
)
def test_what_an_optimizer_uses_is_not_reported(optim, name):
    assert find_ineffective(make_arguments(optim=optim), [name]) == {}


def test_epochs_count_if_they_are_given_and_steps_are_not():
    assert (make_arguments().max_steps, make_arguments(max_steps=7).max_steps) == (100_000, 7)
    arguments = make_arguments(num_train_epochs=1.5)
    assert (arguments.max_steps, arguments.num_train_epochs) == (-1, 1.5)
    assert make_arguments(num_train_epochs=2, max_steps=-1).max_steps == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be a whole number of at least 1"),
        ({"max_steps": -2}, "max_steps is -2; it must be"),
        ({"max_steps": -1}, "max_steps is -1; it must be .* or give num_train_epochs"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it must be a number above 0"),
        ({"num_train_epochs": math.nan}, "num_train_epochs is nan; it must be"),
        ({"max_steps": 5, "num_train_epochs": 1}, "max_steps is 5 and num_train_epochs is 1; give only one"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "optim_args has momentun, but sgd takes only momentum, damp"),
        ({"dataloader_persistent_workers": True}, "dataloader_num_workers is 0; it must be at least 1"),
        ({"torch_compile_mode": "nonsense"}, "torch_compile_mode is 'nonsense'; it must be one of default, "),
        ({"torch_compile_backend": "nonsense"}, "torch_compile_backend is 'nonsense'; it must be one of .*inductor"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config has split_batches; leave it out"),
    ],
)
def test_lengths_and_combinations_that_can_not_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_arguments(**changes)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("bleu", True), ("eval_chrf", True), ("exact_match", True), ("loss", False), ("eval_loss", False)]
    + [("perplexity", False), ("eval_perplexity", False), ("eval_news_loss", False), ("de_perplexity", False)],
)
def test_the_metric_s_name_decides_its_direction_unless_that_is_given(metric, greater):
    assert make_arguments(metric_for_best_model=metric).greater_is_better is greater
    assert make_arguments(metric_for_best_model=metric, greater_is_better=not greater).greater_is_better is not greater


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("metric", "mode"), [("bleu", "max"), ("loss", "min"), (None, "min")])
def test_a_schedule_that_follows_the_metric_knows_its_direction(schedule, metric, mode):
    arguments = make_arguments(lr_scheduler_type=schedule, metric_for_best_model=metric)
    assert arguments.lr_scheduler_kwargs == {"mode": mode}
    given = make_arguments(lr_scheduler_type=schedule, lr_scheduler_kwargs='{"mode": "min", "factor": 0.5}')
    assert given.lr_scheduler_kwargs == {"mode": "min", "factor": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_for_best_model": "nonsense"}, "metric_for_best_model is 'nonsense'; it must be one of loss, .*bleu"),
        ({"predict_with_generate": False}, "'bleu'; it must be one of loss, perplexity as predict_with_generate is F"),
        ({"prediction_loss_only": True}, "'bleu'; it must be one of loss, perplexity as prediction_loss_only is True"),
    ],
)
def test_a_metric_that_validation_does_not_compute_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_metric(make_arguments(**changes))
    check_metric(make_arguments(predict_with_generate=False, metric_for_best_model="eval_loss"))
    check_metric(make_arguments(**changes | {"eval_strategy": "no"}))


def test_the_best_model_is_loaded_by_default_where_there_is_validation():
    assert make_arguments().load_best_model_at_end is True
    assert make_arguments(eval_strategy="no").load_best_model_at_end is False
    assert make_arguments(save_strategy="no").load_best_model_at_end is False


@pytest.mark.parametrize(("precision", "expected"), [("bf16", (True, False)), ("no", (False, False))])
def test_the_precision_of_the_launcher_is_recorded(monkeypatch, precision, expected):
    """`accelerate launch --mixed_precision bf16` trains in it, so it belongs into the record of the run."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    arguments = make_arguments()
    assert (arguments.bf16, arguments.fp16) == expected
    given = make_arguments(fp16=True)
    assert (given.bf16, given.fp16) == (False, True)
