"""Callbacks of a training run: interruption, progress bar, sample translations."""

import signal
import sys
from types import FrameType
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

from ..inference.translate import translate


class SaveOnInterrupt(TrainerCallback):
    """On Ctrl-C, finish the step, save a checkpoint to resume from, and stop. A second Ctrl-C stops at once.

    Attributes:
        interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        """Create the callback; it listens only while training runs."""
        self.interrupted = False

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nInterrupted: saving a checkpoint after this step (Ctrl-C again to stop at once).", file=sys.stderr)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the handler of Ctrl-C."""
        self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and for the end of training after an interruption."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave out what is due after an epoch where an interruption has ended it in the middle."""
        is_inside = state.global_step < state.max_steps and state.epoch != round(state.epoch or 0)
        if self.interrupted and is_inside:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the handler of Ctrl-C."""
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
        """Update the bar from a line of the training log."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        bar: Any = self.training_bar  # declared as None by the library
        if bar is not None and logs is not None and "loss" in logs:
            bar.set_postfix(loss=f"{logs['loss']:.3f}", tokens_per_s=logs["target_tokens_per_second"])


class SampleTranslations(TrainerCallback):
    """Print translations of a few validation sentences after each validation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> None:
        """Create the callback.

        Args:
            tokenizer: The model's tokenizer.
            pairs: Source sentences and their references.
        """
        self.tokenizer = tokenizer
        self.pairs = pairs

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Translate with greedy search and print."""
        # Every process translates: under FSDP each process holds a part of the model.
        sources = [source for source, _ in self.pairs]
        translations = list(translate(kwargs["model"], self.tokenizer, sources, num_beams=1))
        if not state.is_world_process_zero:
            return
        for (source, reference), (translation,) in zip(self.pairs, translations, strict=True):
            print_safely(f"  source      {source}\n  reference   {reference}\n  translation {translation.text}\n")


def print_safely(text: str) -> None:
    """Print text that never ends a run, though the stream may have another encoding, be closed, or on a full disk."""
    try:
        try:
            print(text)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            print(text.encode(encoding, errors="backslashreplace").decode(encoding))
    except (OSError, ValueError):  # ValueError: the stream is closed
        pass
