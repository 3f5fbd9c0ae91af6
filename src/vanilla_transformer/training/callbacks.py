"""Callbacks of a training run: interruption, progress bar, sample translations."""

import signal
import sys
from types import FrameType
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

from ..inference.translate import translate


class SaveOnInterrupt(TrainerCallback):
    """On Ctrl-C, finish the step, save a checkpoint to resume from, and stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.interrupted = False

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nInterrupted: saving a checkpoint after this step (Ctrl-C again to stop at once).", file=sys.stderr)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)


class LossOnProgressBar(ProgressCallback):
    """The stock progress bar, with the last loss and the target tokens per second on it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_per_s=logs["target_tokens_per_second"])


class SampleTranslations(TrainerCallback):
    """Prints translations of a few validation sentences after each validation.

    Args:
        tokenizer: The model's tokenizer.
        pairs: Source sentences and their references.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> None:
        self.tokenizer = tokenizer
        self.pairs = pairs

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        # Every process translates, as under FSDP the model is in parts with all of them.
        translations = list(translate(model, self.tokenizer, [source for source, _ in self.pairs], num_beams=1))
        if not state.is_world_process_zero:
            return
        for (source, reference), (translation,) in zip(self.pairs, translations, strict=True):
            print(f"  source      {source}\n  reference   {reference}\n  translation {translation.text}\n")
