"""The trainer: its loss, its log, the usual flags, and what it leaves as it was."""

import math
from pathlib import Path

import pytest
import torch
from helpers import one_layer_config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import Losses, Poison, equal_weights, make_arguments, make_model, make_trainer, run
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.trainer_utils import HPSearchBackend

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TokenBatchSampler, TranslationCollator
from vanilla_transformer.errors import UserError
from vanilla_transformer.generation_vanilla_transformer import paper_generation_config
from vanilla_transformer.inference.metrics import make_compute_metrics
from vanilla_transformer.training import token_batches
from vanilla_transformer.training.recipe import PaperTrainingArguments
from vanilla_transformer.training.trainer import VanillaTransformerTrainer


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_batches_train_as_one_large_batch(tmp_path, tokenizer, dataset, smoothing):
    """Bart, Marian and T5 ignore `num_items_in_batch`: 4 batches of 4 give 4 times the loss and gradient of 1 of 16."""
    lengths = [len(row) for row in dataset["labels"]]
    sixteen = dataset.select(sorted(range(len(dataset)), key=lengths.__getitem__)[::4][:16])
    runs = {}
    for batch_size in (16, 4):
        model, losses = make_model(tokenizer), Losses()
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / str(batch_size)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=16 // batch_size,
            label_smoothing_factor=smoothing,
            max_steps=1,
            logging_steps=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )

        class SentenceBatches(VanillaTransformerTrainer):
            get_train_dataloader = Seq2SeqTrainer.get_train_dataloader

        make_trainer(model, arguments, tokenizer, sixteen, cls=SentenceBatches, callbacks=[losses]).train()
        runs[batch_size] = losses.losses, [weight.detach() for weight in model.parameters()]
    assert runs[4][0] == pytest.approx(runs[16][0], rel=1e-5)
    for accumulated, at_once in zip(runs[4][1], runs[16][1], strict=True):
        torch.testing.assert_close(accumulated, at_once, rtol=1e-4, atol=1e-6)


def test_stock_trainer_accumulates_rightly_too(tmp_path, tokenizer, dataset):
    losses = {}
    for batch_size in (16, 4):
        log = Losses()
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / str(batch_size)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=16 // batch_size,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = make_trainer(
            make_model(tokenizer), arguments, tokenizer, dataset.select(range(16)), cls=Seq2SeqTrainer, callbacks=[log]
        )
        trainer.train()
        losses[batch_size] = log.losses
    assert losses[4] == pytest.approx(losses[16], rel=1e-5)


@pytest.mark.parametrize("collator", ["ours", "stock"])
def test_stock_trainer_fine_tunes_with_label_smoothing(tmp_path, tokenizer, dataset, collator):
    """The stock label smoother takes the labels away; without `decoder_input_ids` in the batch the model can't run."""
    model = make_model(tokenizer)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        label_smoothing_factor=0.1,
        predict_with_generate=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(4)),
        processing_class=tokenizer,
        data_collator=TranslationCollator(tokenizer, 0)
        if collator == "ours"
        else DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=make_compute_metrics(tokenizer),
    )
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_bleu"] <= 100


def test_the_log_has_tokens_per_second_without_padding(tmp_path, tokenizer, dataset, monkeypatch):
    class Logs(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            lines.append(logs)

    lines: list[dict[str, float]] = []
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr("vanilla_transformer.training.trainer.time.perf_counter", lambda: next(ticks))
    arguments = make_arguments(tmp_path, max_steps=2, logging_steps=1)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[Logs()])
    trainer.train()
    batches = list(trainer.token_batches())[:2]
    for number, (line, batch) in enumerate(zip(lines, batches, strict=False), start=1):
        seconds = 10
        assert line["minutes"] == pytest.approx(number * seconds / 60, abs=1e-3)
        for name, column in (("source", "input_ids"), ("target", "labels")):
            tokens = sum(len(dataset[i][column]) for i in batch)
            assert line[f"{name}_tokens_per_second"] == round(tokens / seconds)


def losses_of(folder: Path, tokenizer, dataset, max_steps: int = 6, **flags) -> list[float]:
    """The loss of each step, after which the model is in the folder."""
    log = Losses()
    arguments = make_arguments(folder, max_steps=max_steps, logging_steps=1, **flags)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[log])
    trainer.train()
    trainer.save_model()
    return log.losses


def test_bfloat16_and_gradient_checkpointing_by_the_usual_flags(tmp_path, tokenizer, dataset):
    plain = losses_of(tmp_path / "plain", tokenizer, dataset)
    assert plain[-1] < plain[0]
    rounded = losses_of(tmp_path / "bf16", tokenizer, dataset, bf16=True)
    assert rounded != plain and rounded == pytest.approx(plain, rel=0.02)
    checkpointed = losses_of(tmp_path / "checkpointed", tokenizer, dataset, gradient_checkpointing=True)
    assert checkpointed == plain and equal_weights(tmp_path / "plain", tmp_path / "checkpointed")


@pytest.mark.gpu
def test_float16_by_the_usual_flag(tmp_path, tokenizer, dataset):
    plain = losses_of(tmp_path / "plain", tokenizer, dataset, use_cpu=False)
    rounded = losses_of(tmp_path / "fp16", tokenizer, dataset, use_cpu=False, fp16=True)
    assert rounded != plain and rounded == pytest.approx(plain, rel=0.02)


def test_float16_on_a_cpu_is_refused(tmp_path, tokenizer, dataset):
    with pytest.raises(
        UserError, match="fp16 is set, but on a CPU accelerate trains in float32 all the same; use bf16"
    ):
        losses_of(tmp_path, tokenizer, dataset, fp16=True)


@pytest.mark.parametrize("cls", [PaperTrainingArguments, Seq2SeqTrainingArguments])
def test_pushing_while_training_is_refused(tmp_path, tokenizer, dataset, cls):
    """The stock trainer would upload the optimizer, and the Hub token in training_args.bin."""
    with pytest.raises(UserError, match="push_to_hub is True; it must be False: train first, then use vanilla-trans"):
        arguments = cls(output_dir=str(tmp_path), push_to_hub=True, hub_token="hf_secret", use_cpu=True)
        make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 can't trace transformers' own decorators")
def test_compiled_training_gives_the_losses_of_plain_training(tmp_path, tokenizer, dataset):
    """Two steps: the second batch has another shape, and makes the compiler replace numbers by symbols."""
    plain = losses_of(tmp_path / "plain", tokenizer, dataset, max_steps=2)
    flags = {"max_steps": 2, "torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = losses_of(tmp_path / "compiled", tokenizer, dataset, **flags)
    assert len(plain) == 2 and compiled == pytest.approx(plain, rel=1e-4)


def test_tensorboard_shows_loss_tokens_per_second_and_validation(tmp_path, tokenizer, dataset, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    arguments = make_arguments(
        tmp_path / "run", logging_steps=1, report_to="tensorboard", eval_strategy="steps", eval_steps=2
    )
    make_trainer(make_model(tokenizer), arguments, tokenizer, dataset).train()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/target_tokens_per_second", "eval/loss", "eval/perplexity"} <= set(tags)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_training_and_evaluation_leave_generation_config_and_use_cache_alone(tmp_path, tokenizer, dataset):
    """The stock trainer saves `max_length: 20, num_beams: 1` after one evaluation, and `use_cache: false`."""
    model = make_model(tokenizer)
    model.generation_config = paper_generation_config(model)
    before = model.generation_config.to_dict()
    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer = make_trainer(model, arguments, tokenizer, dataset, compute_metrics=make_compute_metrics(tokenizer))
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        after = GenerationConfig.from_pretrained(folder).to_dict()
        if after["eos_token_id"] == [before["eos_token_id"]]:  # transformers 5.17 writes one id as a list
            after["eos_token_id"] = before["eos_token_id"]
        assert after == before
        assert VanillaTransformerConfig.from_pretrained(folder).use_cache is True


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, tokenizer, dataset):
    with pytest.raises(UserError, match=r"the loss is nan at step 6: .* last good checkpoint is .*checkpoint-4; try"):
        run(tmp_path, tokenizer, dataset, callbacks=[Poison(step=5)])
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tokenizer, dataset):
    config = one_layer_config(tokenizer)
    config.vocab_size -= 1
    model = VanillaTransformerForConditionalGeneration(config)
    with pytest.raises(UserError, match=r"the tokenizer has 280 types, but the model's vocab_size is 279"):
        make_trainer(model, make_arguments(tmp_path), tokenizer, dataset)


def test_a_run_without_warm_up_is_refused_or_warned_about(tmp_path, tokenizer, dataset, caplog):
    with pytest.raises(UserError, match="diverges without warm-up"):
        make_trainer(
            make_model(tokenizer), make_arguments(tmp_path, warmup_steps=0, learning_rate=None), tokenizer, dataset
        )
    make_trainer(make_model(tokenizer), make_arguments(tmp_path, warmup_steps=0), tokenizer, dataset)
    assert "There is no warm-up" in caplog.text


def test_best_model_is_loaded_without_complaint_about_tied_weights(tmp_path, tokenizer, dataset, caplog):
    arguments = make_arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="bleu",
    )
    trainer = make_trainer(
        make_model(tokenizer), arguments, tokenizer, dataset, compute_metrics=make_compute_metrics(tokenizer)
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    assert trainer.state.best_model_checkpoint and "missing keys" not in caplog.text
    assert trainer.model.lm_head.weight is trainer.model.model.shared.weight


def test_a_model_init_function_makes_the_model(tmp_path, tokenizer, dataset):
    arguments = make_arguments(tmp_path, max_steps=1)
    trainer = VanillaTransformerTrainer(
        args=arguments,
        model_init=lambda: make_model(tokenizer),
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=TranslationCollator(tokenizer, 0),
    )
    assert trainer.train().global_step == 1 and trainer.model.config.use_cache is True


def test_a_trial_of_a_hyperparameter_search_has_its_own_learning_rate(tmp_path, tokenizer, dataset):
    """By the names that a trial sets; the paper's rate follows a trial's warm-up."""
    arguments = make_arguments(tmp_path, max_steps=1, learning_rate=None)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    trainer.hp_search_backend = HPSearchBackend.RAY
    trainer._hp_search_setup({"warmup_steps": 40.0})
    assert trainer.args.learning_rate == pytest.approx((16 * 40) ** -0.5)
    for _ in range(2):  # also where two trials in a row have the same
        trainer._hp_search_setup({"learning_rate": 0.5})
        assert trainer.args.learning_rate == 0.5
    trainer._hp_search_setup({"warmup_steps": 10.0})
    assert trainer.args.learning_rate == pytest.approx((16 * 10) ** -0.5)


def test_a_trial_can_set_what_ends_a_run_or_averages_it(tmp_path, tokenizer, dataset):
    arguments = make_arguments(tmp_path, max_steps=4, ema_decay=None, max_minutes=None)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    trainer.args.ema_decay, trainer.args.max_minutes = 0.5, 1e-9
    trainer.train()
    assert trainer.state.global_step == 1 and trainer._average_updates == 1


def test_epochs_and_a_warm_up_that_is_a_share_of_them(tmp_path, tokenizer, dataset):
    arguments = make_arguments(tmp_path, max_steps=-1, num_train_epochs=1.5, warmup_steps=0.5, learning_rate=None)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    batches = len(trainer.token_batches())
    assert trainer.total_steps() == math.ceil(1.5 * batches)
    assert arguments.learning_rate == pytest.approx((16 * math.ceil(0.5 * trainer.total_steps())) ** -0.5)
    assert trainer.train().global_step == trainer.total_steps()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "can't create the schedule .*cosine_with_min_lr: .*min_lr"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "can't create the schedule .*inverse_sqrt: .*nonsense"),
        ({"optim": "adamw_bnb_8bit"}, "can't create the optimizer .*adamw_bnb_8bit: "),
        ({"optim_args": "nonsense"}, "can't create the optimizer .*: "),
    ],
)
def test_an_optimizer_or_schedule_that_can_not_be_is_refused_before_the_first_step(
    tmp_path, tokenizer, dataset, changes, message
):
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path, **changes), tokenizer, dataset)
    with pytest.raises(UserError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_batches_are_planned_once(tmp_path, tokenizer, dataset, monkeypatch):
    """For the number of steps, for a resumed run and for the batches themselves."""
    planned = []

    class Planned(TokenBatchSampler):
        def __init__(self, *args, **kwargs) -> None:
            planned.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(token_batches, "TokenBatchSampler", Planned)
    arguments = make_arguments(tmp_path, max_steps=-1, num_train_epochs=2, warmup_steps=0.1)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    steps = trainer.total_steps()
    trainer.train()
    assert trainer.state.global_step == steps and len(planned) == 1
    trainer.args.per_device_train_tokens = 100
    assert trainer.total_steps() > steps and len(planned) == 2
