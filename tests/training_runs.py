"""Small training runs that several test files share."""

import signal
from pathlib import Path

import torch
from datasets import Dataset
from helpers import one_layer_config
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    TrainerCallback,
)

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TranslationCollator
from vanilla_transformer.training.recipe import PaperTrainingArguments
from vanilla_transformer.training.trainer import VanillaTransformerTrainer

WORDS = "one two three four five six seven eight nine ten".split()
SENTENCES = [
    " ".join(WORDS[i % 10] for i in range(start, start + length)) for start in range(10) for length in range(2, 10)
]


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


class Losses(TrainerCallback):
    """Keeps the logged training losses."""

    def __init__(self) -> None:
        self.losses = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


class Poison(TrainerCallback):
    """Makes one weight infinite at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            model.model.encoder.layers[0].fc1.weight.data[0, 0] = float("inf")
