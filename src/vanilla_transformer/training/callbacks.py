"""Callbacks of a training run: interruption, progress bar, sample translations; and output that never ends it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import Any, TextIO, cast

import torch
from accelerate.utils import gather
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import IntervalStrategy

from ..inference.translate import translate


class SaveOnInterrupt(TrainerCallback):
    """On Ctrl-C or SIGTERM, finish the step, save a checkpoint to resume from, and stop. A second one stops at once.

    Attributes:
        signal: The signal that came, in any of the processes; 0 if none did.
    """

    def __init__(self) -> None:
        """Create the callback; it listens only while training runs."""
        self.signal = 0
        self._previous: dict[int, Any] = {}  # handlers by their signals, while it listens

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed, or SIGTERM was sent."""
        return self.signal != 0

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.signal = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        again = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
        words = f"\nInterrupted: saving a checkpoint after this step ({again} again to stop at once)."
        print_safely(words, sys.stderr)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the handlers of the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._interrupt) or signal.SIG_DFL

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and for the end of training after an interruption."""
        if args.world_size > 1:  # the signal may come to one process only, and all must stop at the same step
            signals = gather(torch.tensor([self.signal], device=args.device))
            self.signal = int(signals.max().item())
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
        """Restore the handlers of the signals."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Restore the handlers of the signals; the trainer does where training ends with an error."""
        while self._previous:
            signal.signal(*self._previous.popitem())


class SaveAfterValidation(TrainerCallback):
    """Where the end of an epoch is validated, save after that: a resumed run does not repeat it."""

    def __init__(self) -> None:
        """Create the callback."""
        self._is_due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put off a checkpoint at the end of an epoch."""
        ends_epoch = state.global_step >= state.max_steps or state.epoch == round(state.epoch or 0)
        if args.eval_strategy == IntervalStrategy.EPOCH and ends_epoch and control.should_save:
            control.should_save, self._is_due = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the checkpoint; what is asked for here comes after the validation."""
        control.should_save |= self._is_due
        self._is_due = False


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


def print_safely(text: str, file: TextIO | None = None) -> None:
    """Print text that never ends a run, though the stream may have another encoding, be closed, or on a full disk.

    Args:
        text: The text.
        file: The stream; by default standard output.
    """
    stream = sys.stdout if file is None else file
    try:
        try:
            print(text, file=stream)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=stream)
    except (OSError, ValueError, RuntimeError):
        pass  # ValueError: the stream is closed. RuntimeError: it is being written to, and a signal came


class _LastingStream:
    """A stream that takes what is written though it is on a full disk, closed, or a pipe that nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it where the stream takes none."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream where it can be."""
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except UnicodeEncodeError:
            raise
        except BrokenPipeError:
            self._leave_pipe()
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass

    def _leave_pipe(self) -> None:
        """Send the rest nowhere, so that the last flush of the process succeeds too."""
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except (OSError, ValueError):  # not a file
            pass


@contextmanager
def lasting_output() -> Iterator[None]:
    """Give standard output and standard error that never raise, so that what reads them can't end a run.

    `train ... 2>&1 | tee log` is an example: Ctrl-C ends `tee` too, and the checkpoint is still to be saved.
    """
    with ExitStack() as stack:
        if sys.stdout is not None:
            stack.enter_context(redirect_stdout(cast(TextIO, _LastingStream(sys.stdout))))
        if sys.stderr is not None:
            stack.enter_context(redirect_stderr(cast(TextIO, _LastingStream(sys.stderr))))
        yield
