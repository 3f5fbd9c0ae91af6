"""An exponential moving average of the weights, kept beside training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from .evaluation import EvaluatingTrainer

# In a checkpoint of a run with `ema_decay`, whose model.safetensors is the average: the weights to continue from.
TRAINING_WEIGHTS_NAME = "training_weights.safetensors"


def decay_of_update(decay: float, updates: int) -> float:
    """Return the decay of an update of the average: less in the first, when the weights are far from their end.

    It is that of `tf.train.ExponentialMovingAverage` with `num_updates`, as in tensor2tensor and Marian.

    Args:
        decay: The decay of a long run.
        updates: Number of updates before this one.
    """
    return min(decay, (1 + updates) / (10 + updates))


class AveragingTrainer(EvaluatingTrainer):
    """Trainer that can keep an exponential moving average of the weights (`ema_decay`).

    As with Marian's `--exponential-smoothing`, training goes on with the weights themselves, while the average is what
    is validated and saved: `model.safetensors` of a checkpoint has the average, `training_weights.safetensors` the
    weights. After training the model has the average, or that of the best checkpoint. Every process holds a further
    copy of the weights in float32.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the trainer, with the arguments of the stock one."""
        super().__init__(*args, **kwargs)
        self._average: dict[str, torch.Tensor] = {}  # of the parameters that are trained; empty without `ema_decay`
        self._average_updates = 0
        self._shows_average = False
        self.add_callback(_AverageWeights(self))

    @property
    def _ema_decay(self) -> float | None:
        return getattr(self.args, "ema_decay", None)  # plain Seq2SeqTrainingArguments have none

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained by their names, a tied one once."""
        parameters = cast(PreTrainedModel, self.model).named_parameters()
        return {name: parameter for name, parameter in parameters if parameter.requires_grad}

    def begin_average(self) -> None:
        """Begin the average with the weights as they are; without `ema_decay` there is none.

        Raises:
            UserError: The weights are not in float32, in which alone small changes add up.
        """
        self._average_updates = 0
        parameters = {} if self._ema_decay is None else self._trained_parameters()
        for name, parameter in parameters.items():
            if parameter.dtype != torch.float32:
                kind = str(parameter.dtype).removeprefix("torch.")
                raise UserError(
                    f"ema_decay is {self._ema_decay}, but the weight {name} is in {kind}, in which the small changes "
                    "of an average are lost; load the model in float32, or leave out ema_decay"
                )
        self._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update_average(self) -> None:
        """Move the average towards the weights, after an optimizer step; without `ema_decay` there is none."""
        if self._ema_decay is None:
            return
        decay = decay_of_update(self._ema_decay, self._average_updates)
        weights = [parameter.detach() for parameter in self._trained_parameters().values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)
        self._average_updates += 1

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Give the model the average, and the weights back at the end."""
        if not self._average or self._shows_average:
            yield
            return
        self._exchange()
        self._shows_average = True
        try:
            yield
        finally:
            self._shows_average = False
            self._exchange()

    def _exchange(self) -> None:
        """Exchange weights and average; nothing is copied."""
        for name, parameter in self._trained_parameters().items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run the stock evaluation on the average."""
        with self._averaged_weights():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock prediction on the average."""
        with self._averaged_weights():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the average as the stock trainer saves the model."""
        with self._averaged_weights():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the stock checkpoint, and the weights to continue from."""
        super()._save_checkpoint(model, trial)
        if self._average and self.args.should_save and not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            weights = {name: parameter.detach().cpu() for name, parameter in self._trained_parameters().items()}
            save_file(weights, folder / TRAINING_WEIGHTS_NAME, {"updates": str(self._average_updates)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load optimizer and schedule; where the checkpoint's model is an average, also the weights themselves."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self._ema_decay is not None:
            self.begin_average()  # the checkpoint's model is loaded
        file = Path(checkpoint, TRAINING_WEIGHTS_NAME)
        if not file.is_file():
            return
        with safe_open(file, framework="pt") as weights, torch.no_grad():
            self._average_updates = int(weights.metadata()["updates"])
            for name, parameter in self._trained_parameters().items():
                parameter.copy_(weights.get_tensor(name))

    def _finalize_training(self, *args: Any) -> Any:
        """Give the model the average for good, then end as the stock trainer does."""
        if self._average:
            self._exchange()
            self._average = {}
        return super()._finalize_training(*args)


class _AverageWeights(TrainerCallback):
    """Keeps the average of a trainer's weights, if there is an `ema_decay`."""

    def __init__(self, trainer: AveragingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the average, unless a checkpoint had one."""
        if state.global_step == 0:
            self.trainer.begin_average()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the average, before it is validated or saved."""
        self.trainer.update_average()
