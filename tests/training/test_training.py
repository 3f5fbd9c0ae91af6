"""The paper's recipe, and what the trainer must leave as it was."""

import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import one_layer_config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TranslationCollator
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.generation_vanilla_transformer import paper_generation_config
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.metrics import make_compute_metrics
from vanilla_transformer.training.averaging import average_checkpoints, last_checkpoints
from vanilla_transformer.training.callbacks import SampleTranslations, SaveOnInterrupt
from vanilla_transformer.training.checkpoints import checkpoint_to_resume
from vanilla_transformer.training.recipe import PaperTrainingArguments, noam_peak, paper_arguments
from vanilla_transformer.training.trainer import VanillaTransformerTrainer

WORDS = "one two three four five six seven eight nine ten".split()
SENTENCES = [
    " ".join(WORDS[i % 10] for i in range(start, start + length)) for start in range(10) for length in range(2, 10)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, 280)


@pytest.fixture(scope="module")
def dataset(tokenizer) -> Dataset:
    pairs = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})
    return encode_pairs(pairs, tokenizer, max_source_length=100, max_target_length=100, max_length_ratio=9)[0]


def make_model(tokenizer, dropout: float = 0.0) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(0)
    config = one_layer_config(tokenizer, dropout=dropout)
    return VanillaTransformerForConditionalGeneration(config)


def make_arguments(output_dir: Path, **overrides) -> PaperTrainingArguments:
    settings = {
        "max_steps": 4,
        "warmup_steps": 10,
        "learning_rate": 0.01,
        "per_device_train_tokens": 200,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return PaperTrainingArguments(output_dir=str(output_dir), **(settings | overrides))


def make_trainer(model: PreTrainedModel, arguments, tokenizer, dataset, cls=VanillaTransformerTrainer, **kwargs):
    return cls(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(8)) if isinstance(dataset, Dataset) else None,
        processing_class=tokenizer,
        data_collator=TranslationCollator(tokenizer, model.config.decoder_start_token_id),
        **kwargs,
    )


def equal_weights(one: str | Path, other: str | Path) -> bool:
    first, second = (load_file(Path(folder, "model.safetensors")) for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The recipe


def test_defaults_are_those_of_section_5(tmp_path):
    arguments = PaperTrainingArguments(output_dir=str(tmp_path))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert arguments.lr_scheduler_type == "inverse_sqrt" and arguments.warmup_steps == 4_000
    assert arguments.label_smoothing_factor == 0.1
    assert arguments.max_grad_norm == 0 and arguments.weight_decay == 0
    assert arguments.max_steps == 100_000 and arguments.per_device_train_tokens == 25_000


def test_learning_rate_is_equation_3(tmp_path, tokenizer, dataset):
    """transformers' inverse square root with the right peak, step by step against the paper's formula."""
    d_model, warmup = 512, 7
    arguments = make_arguments(tmp_path, warmup_steps=warmup, learning_rate=noam_peak(d_model, warmup))
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    trainer.create_optimizer_and_scheduler(num_training_steps=50)
    for step in range(1, 51):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        expected = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(expected)


def test_new_models_decode_as_in_section_6_1_unless_told_otherwise(tokenizer):
    generation_config = paper_generation_config(make_model(tokenizer))
    assert (generation_config.num_beams, generation_config.length_penalty) == (4, 0.6)
    assert generation_config.decoder_start_token_id == 0


@pytest.mark.parametrize(
    ("preset", "steps", "dropout", "averaged", "d_model"),
    [("base", 100_000, 0.1, 5, 512), ("big", 300_000, 0.3, 20, 1024)],
)
def test_paper_arguments_are_tables_3_and_section_6_1(tmp_path, preset, steps, dropout, averaged, d_model):
    arguments = paper_arguments(preset, str(tmp_path))
    assert isinstance(arguments, Seq2SeqTrainingArguments)
    assert (arguments.max_steps, arguments.save_total_limit) == (steps, averaged)
    assert VanillaTransformerConfig.preset(preset).dropout == dropout
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert (arguments.lr_scheduler_type, arguments.warmup_steps) == ("inverse_sqrt", 4_000)
    assert arguments.learning_rate == pytest.approx((d_model * 4_000) ** -0.5)
    assert (arguments.max_grad_norm, arguments.weight_decay, arguments.label_smoothing_factor) == (0, 0, 0.1)
    assert arguments.per_device_train_tokens == 25_000


def test_paper_arguments_can_be_changed(tmp_path):
    arguments = paper_arguments("base", str(tmp_path), warmup_steps=100, gradient_accumulation_steps=4)
    assert arguments.learning_rate == pytest.approx((512 * 100) ** -0.5)
    assert arguments.gradient_accumulation_steps == 4
    with pytest.raises(UserError, match="diverges without warm-up"):
        paper_arguments("base", str(tmp_path), warmup_steps=0)


# Loss


class Losses(TrainerCallback):
    """Keeps the logged training losses."""

    def __init__(self) -> None:
        self.losses = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


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


def test_evaluation_loss_is_the_likelihood_not_the_smoothed_loss(tmp_path, tokenizer, dataset):
    """The stock trainer reports the smoothed loss, whose exponential is no perplexity."""
    model = make_model(tokenizer)
    trainer = make_trainer(model, make_arguments(tmp_path, predict_with_generate=False), tokenizer, dataset)
    trainer.args.per_device_eval_batch_size = 3
    metrics = trainer.evaluate(dataset.select(range(8)))  # batches of 3, 3 and 2 with different numbers of labels
    batch = trainer.data_collator([dataset[i] for i in range(8)])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(expected.exp().item(), rel=1e-5)


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


# The usual flags


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


# What stays as it was


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


def test_predictions_come_in_the_order_of_the_data(tmp_path, tokenizer, dataset):
    """Grouping by length also permutes what `predict` gives back."""
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path), tokenizer, dataset)
    labels = trainer.predict(dataset, max_new_tokens=3).label_ids
    for row, expected in zip(labels, dataset["labels"], strict=True):
        assert [token for token in row if token not in (-100, tokenizer.pad_token_id)] == expected


# Interrupting and resuming


def run(folder: Path, tokenizer, dataset, steps: int = 12, resume: str | None = None, callbacks=()) -> Path:
    """Train with dropout, over more than one epoch, saving every 4 steps."""
    arguments = make_arguments(folder, max_steps=steps, save_strategy="steps", save_steps=4, save_total_limit=None)
    model = make_model(tokenizer, dropout=0.2)
    trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return folder


class StopAt(TrainerCallback):
    """Ends the training after a step, as if it had been killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


class Press(TrainerCallback):
    """Sends this process Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tokenizer, dataset, capsys):
    """Ctrl-C in the middle of the second epoch; the rest of that epoch must be the batches not yet seen."""
    whole = run(tmp_path / "whole", tokenizer, dataset)
    handler = signal.getsignal(signal.SIGINT)
    interrupt = SaveOnInterrupt()
    run(tmp_path / "parts", tokenizer, dataset, callbacks=[interrupt, Press(step=6)])
    assert interrupt.interrupted and signal.getsignal(signal.SIGINT) is handler
    assert "saving a checkpoint after this step" in capsys.readouterr().err
    checkpoint = checkpoint_to_resume(tmp_path / "parts", "last")
    assert Path(checkpoint).name == "checkpoint-7"

    resumed = run(tmp_path / "parts", tokenizer, dataset, resume=checkpoint)
    assert equal_weights(whole, resumed)
    assert not equal_weights(whole, whole / "checkpoint-8")


def test_a_streamed_run_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tokenizer):
    """In the second epoch, two accumulated batches a step; resuming anew must not begin at the first sentence."""
    rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})

    def train(folder: Path, steps: int, resume: str | None = None) -> TokenStream:
        stream = TokenStream(
            rows.to_iterable_dataset(),
            tokenizer,
            max_tokens=300,
            max_source_length=100,
            max_target_length=100,
            max_length_ratio=9,
            buffer_size=30,
        )
        arguments = make_arguments(
            folder, max_steps=12, gradient_accumulation_steps=2, save_strategy="steps", save_steps=4
        )
        stop = [StopAt(steps)]
        trainer = make_trainer(make_model(tokenizer, dropout=0.2), arguments, tokenizer, stream, callbacks=stop)
        trainer.train(resume_from_checkpoint=resume)
        return stream

    whole = train(tmp_path / "whole", 12)
    assert whole.report.kept > len(SENTENCES)
    train(tmp_path / "parts", 8)
    checkpoint = checkpoint_to_resume(tmp_path / "parts", "last")
    assert Path(checkpoint).name == "checkpoint-8"
    resumed = train(tmp_path / "parts", 12, resume=checkpoint)
    assert resumed.report == whole.report
    assert equal_weights(tmp_path / "whole" / "checkpoint-12", tmp_path / "parts" / "checkpoint-12")


def test_a_streamed_run_resumes_as_a_stream_only(tmp_path, tokenizer, dataset):
    run(tmp_path, tokenizer, dataset, steps=4)
    stream = TokenStream(
        Dataset.from_dict({"source": ["one"], "target": ["ONE"]}).to_iterable_dataset(),
        tokenizer,
        max_tokens=200,
        max_source_length=9,
        max_target_length=9,
        max_length_ratio=9,
        buffer_size=1,
    )
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path), tokenizer, stream)
    with pytest.raises(UserError, match="checkpoint-4 was trained without streaming; continue it in the same way"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_run_never_writes_into_another_runs_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="already exists and is not empty; give another output_dir"):
        checkpoint_to_resume(tmp_path, None)
    assert checkpoint_to_resume(tmp_path / "new", None) is None


def test_nothing_to_resume_from_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no complete checkpoint in .* to resume from"):
        checkpoint_to_resume(tmp_path, "last")
    with pytest.raises(UserError, match="is not a complete checkpoint: it has no readable trainer_state.json"):
        checkpoint_to_resume(tmp_path, str(tmp_path))


def test_a_folder_that_can_not_be_written_into_is_named_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't write into .*file/run: Not a directory; give another --output_dir"):
        checkpoint_to_resume(tmp_path / "file" / "run", None)


@pytest.mark.parametrize("state", [None, '{"global_step": 12, "epo'])
def test_a_half_written_checkpoint_is_passed_over_with_a_warning(tmp_path, tokenizer, dataset, caplog, state):
    """A run that was killed while it wrote its last checkpoint: the Trainer's state is missing or cut off."""
    run(tmp_path, tokenizer, dataset)
    state_file = tmp_path / "checkpoint-12" / "trainer_state.json"
    state_file.unlink()
    if state is not None:
        state_file.write_text(state)
    assert checkpoint_to_resume(tmp_path, "last") == str(tmp_path / "checkpoint-8")
    assert "checkpoint-12 was not written to the end and is skipped" in caplog.text
    assert [path.name for path in last_checkpoints(tmp_path, 2)] == ["checkpoint-4", "checkpoint-8"]


def test_a_full_disk_stops_with_a_sentence_and_the_last_checkpoint_intact(tmp_path, tokenizer, dataset, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    class DiskFills(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                monkeypatch.setattr(torch, "save", full)

    with pytest.raises(UserError, match="checkpoint of step 8 .* No space left on device; the last good .*-4; free"):
        run(tmp_path / "parts", tokenizer, dataset, callbacks=[DiskFills()])
    monkeypatch.undo()
    whole = run(tmp_path / "whole", tokenizer, dataset)
    resumed = run(tmp_path / "parts", tokenizer, dataset, resume=checkpoint_to_resume(tmp_path / "parts", "last"))
    assert equal_weights(whole, resumed)


class Poison(TrainerCallback):
    """Makes one weight infinite at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            model.model.encoder.layers[0].fc1.weight.data[0, 0] = float("inf")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, tokenizer, dataset):
    with pytest.raises(UserError, match=r"the loss is nan at step 6: .* last good checkpoint is .*checkpoint-4; try"):
        run(tmp_path, tokenizer, dataset, callbacks=[Poison(step=5)])
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


# What is refused or warned about


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


def test_sample_translations_are_printed_at_each_validation(tmp_path, tokenizer, dataset, capsys):
    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    samples = SampleTranslations(tokenizer, [("one two", "ONE TWO")])
    make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[samples]).train()
    assert capsys.readouterr().out.count("source      one two\n  reference   ONE TWO\n  translation ") == 2


# Averaging


def test_average_of_checkpoints_is_the_mean_of_their_weights_as_a_model_folder(tmp_path, tokenizer, dataset):
    run(tmp_path / "run", tokenizer, dataset)
    checkpoints = last_checkpoints(tmp_path / "run", 2)
    assert [checkpoint.name for checkpoint in checkpoints] == ["checkpoint-8", "checkpoint-12"]
    average_checkpoints(checkpoints, tmp_path / "average")
    eighth, twelfth, average = (
        load_file(folder / "model.safetensors") for folder in (*checkpoints, tmp_path / "average")
    )
    for name, weight in average.items():
        torch.testing.assert_close(weight, (eighth[name] + twelfth[name]) / 2)
    model, loaded_tokenizer = load(str(tmp_path / "average"))
    assert model.lm_head.weight is model.model.shared.weight
    assert loaded_tokenizer("one two")["input_ids"] == tokenizer("one two")["input_ids"]


def test_averages_that_can_not_be_are_refused(tmp_path, tokenizer, dataset):
    run(tmp_path / "run", tokenizer, dataset, steps=4)
    with pytest.raises(UserError, match="has 1 checkpoints, so the last 5 can't be averaged"):
        last_checkpoints(tmp_path / "run", 5)
    with pytest.raises(UserError, match="already exists and is not empty"):
        average_checkpoints([tmp_path / "run" / "checkpoint-4"], tmp_path / "run")
