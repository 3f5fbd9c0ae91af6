"""Seq2SeqTrainer with batches by token budget and the paper's label smoothing."""

import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import SaveStrategy, SchedulerType, TrainOutput, rotate_checkpoints
from transformers.training_args import OptimizerNames
from transformers.utils import SAFE_WEIGHTS_NAME

from ..data.corpora import Mixture
from ..data.streaming import TokenStream
from ..errors import UserError, first_line
from ..modeling_vanilla_transformer import IGNORED_LABEL
from .callbacks import LossOnProgressBar, SaveAfterValidation, SaveOnInterrupt, lasting_output
from .checkpoints import (
    STAGING_MODEL_NAME,
    STAGING_NAME,
    check_undamaged,
    checkpoint_to_resume,
    commit_checkpoint,
    last_good_checkpoint,
)
from .options import LOWER_IS_BETTER, REFUSED
from .recipe import PaperTrainingArguments, set_paper_learning_rate
from .resuming import (
    SCHEDULE,
    STATE_NAME,
    apply_schedule,
    check_optimizer_state,
    check_schedule_change,
    compare_settings,
    describe_settings,
    fingerprint_data,
    hyperparameters,
    readable,
    saved_states,
)
from .stopping import COMPARED_FROM, MINUTES, EarlyStopping, TimeLimit, find_stop_reason, logged_minutes
from .token_batches import TokenBatchTrainer


class VanillaTransformerTrainer(TokenBatchTrainer):
    """Seq2SeqTrainer with batches by token budget and the paper's label smoothing.

    The stock trainer works with the model as well. This one differs as follows:
    - Training batches have a token budget, see `TokenBatchTrainer`.
    - The model smooths the labels itself, in training only. The loss does not depend on how a batch is split for
      gradient accumulation, and `eval_loss` is the negative log-likelihood.
    - Validation batches have a token budget too, see `EvaluatingTrainer`; the weights may be averaged, see
      `AveragingTrainer`.
    - The log has source and target tokens per second, `minutes` since the run began (including validation, checkpoints
      and the time before an interruption) and `eval_perplexity`.
    - A checkpoint appears under its name when it is complete. It holds the settings of the run; a resumed run obeys
      changed settings or refuses them, and a finished run is not trained again.
    - A non-finite loss, or a checkpoint that can't be written, stops the run with a `UserError`.
    - `model.generation_config` and `config.use_cache` do not change, so that a saved model keeps both.

    Attributes:
        run_settings: Further settings that each checkpoint keeps, for the program that made the trainer.
        metric_settings: What the metrics of translations depend on beside the arguments, such as BLEU's tokenizer; the
            best checkpoint is chosen anew where it changes.
    """

    args: PaperTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: PaperTrainingArguments | None = None,
        *,
        mixture: Mixture | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer.

        Args:
            model: The model to train; or give `model_init`.
            args: The training arguments.
            mixture: The share of each corpus in an epoch; `train_dataset` has their rows, one corpus after the other.
                None for each row once.
            **kwargs: Further arguments of `Seq2SeqTrainer`.

        Raises:
            UserError: The tokenizer has more types than the model, there is neither a warm-up nor a learning rate, fp16
                is set on a CPU, or push_to_hub is set.
        """
        args = PaperTrainingArguments() if args is None else args
        if args.push_to_hub:  # the stock trainer would upload the optimizer, and the Hub token with the arguments
            raise UserError(f"push_to_hub is True; it must be False: {REFUSED['push_to_hub'][1]}")
        if args.fp16 and args.device.type == "cpu":
            raise UserError("fp16 is set, but on a CPU accelerate trains in float32 all the same; use bf16, or neither")
        if model is not None:
            self._use_cache = model.config.use_cache
        super().__init__(model=model, args=args, mixture=mixture, **kwargs)
        own_model = cast(PreTrainedModel, self.model)
        own_model.config.use_cache = self._use_cache
        tokenizer: Any = self.processing_class
        if tokenizer is not None and len(tokenizer) > own_model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} types, but the model's vocab_size is "
                f"{own_model.config.vocab_size}; use the model's own tokenizer, or model.resize_token_embeddings"
            )
        self._has_paper_rate = args.learning_rate is None
        set_paper_learning_rate(args, own_model.config.d_model, self.total_steps() if args.warmup_steps < 1 else -1)
        self.label_smoother = None
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossOnProgressBar)
        self.run_settings: dict[str, Any] = {}
        self.metric_settings: dict[str, str] = {}
        self._fingerprints: dict[str, str | None] = {}  # of the data, once they are needed
        self._changed: set[str] = set()  # settings that differ from those of the checkpoint
        self._compared_from = -1  # step up to which validations were on other data
        self._stream_start = (0, 0)  # step at which this part of the run began, and batches taken from the stream then
        self._staging: Path | None = None  # where a checkpoint is being written
        self._saved_step = -1  # of the last checkpoint that this part of the run wrote
        # Source and target tokens of this process since the last log line, and the time of that line.
        self._tokens = torch.zeros(2, dtype=torch.long, device=args.device)
        self._clock = self._last_line = time.perf_counter()
        self.add_callback(EarlyStopping())
        self.add_callback(TimeLimit(self.minutes))
        self.add_callback(SaveAfterValidation())

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Create a model by `model_init`."""
        model = super().call_model_init(trial)
        self._use_cache = cast(PreTrainedModel, model).config.use_cache
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a trial, and the paper's learning rate for them unless the trial has one."""
        takes_paper_rate = trial is not None and self._has_paper_rate
        if takes_paper_rate:
            self.args.learning_rate = None
        super()._hp_search_setup(trial)
        if takes_paper_rate and self.args.learning_rate is None:
            set_paper_learning_rate(self.args, cast(PreTrainedModel, self.model).config.d_model, self.total_steps())

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Run the stock training; on resuming, continue a stream of data at the checkpoint's position.

        A run that is finished is not trained again; the model becomes the one that it ended with.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the last complete checkpoint in `output_dir`; None
                or False for a new run.
            trial: As in the stock trainer.
            ignore_keys_for_eval: As in the stock trainer.

        Raises:
            UserError: There is no such checkpoint, it is damaged, or its settings contradict those of this run.
        """
        processes = self.accelerator.num_processes
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoint_to_resume(str(self.args.output_dir), "last", processes)
        elif resume_from_checkpoint:
            check_undamaged(resume_from_checkpoint, processes)
        self.total_steps()  # refuse epochs of a stream before anything else
        self._changed, self._stream_start, self._compared_from, self._saved_step = set(), (0, 0), -1, -1
        if resume_from_checkpoint:
            state = self._check_checkpoint(resume_from_checkpoint)
            if self._is_over(state):
                return self._finish(resume_from_checkpoint, state)
        self._clock = self._last_line = time.perf_counter()
        try:
            with lasting_output():
                return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, SaveOnInterrupt):
                    callback.restore_handlers()

    def _check_checkpoint(self, checkpoint: str) -> TrainerState:
        """Compare a checkpoint's settings with those of this run, and move the stream to its position.

        Raises:
            UserError: The settings contradict those of this run.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        saved = saved_states(state)
        stream = self.train_dataset if isinstance(self.train_dataset, TokenStream) else None
        position = saved.get(TokenStream.__name__)
        if (position is not None) != (stream is not None):
            raise UserError(
                f"{checkpoint} was trained {'without' if position is None else 'with'} streaming; continue it in the "
                "same way"
            )
        if STATE_NAME in saved:
            before, now = saved[STATE_NAME]["arguments"], self._settings()
            self._changed = compare_settings(before, now, Path(checkpoint).name, stream is not None)
            if self._changed & self._scales():
                saved[STATE_NAME][COMPARED_FROM] = state.global_step
            self._compared_from = saved[STATE_NAME].get(COMPARED_FROM, -1)
        if stream is not None and position is not None:
            stream.resume(position)
            self._stream_start = (state.global_step, position["taken"])
            self.args.ignore_data_skip = True  # the stream skips by itself, without making the batches
        return state

    def _settings(self) -> dict[str, Any]:
        """Return the settings of this run that a checkpoint keeps."""
        if not self._fingerprints:
            data = {"train_data": self.train_dataset, "eval_data": self.eval_dataset}
            self._fingerprints = {name: fingerprint_data(value) for name, value in data.items()}
            if self.mixture is not None:
                self._fingerprints["train_data"] = f"{self._fingerprints['train_data']}, {self.mixture}"
        dropout = getattr(self.train_dataset, "dropout", None)
        settings = describe_settings(self.args, self.accelerator.num_processes, dropout)
        return settings | self._fingerprints | self.metric_settings

    def _scales(self) -> set[str]:
        """Name the settings that make validations incomparable where they change."""
        if str(self.args.metric_for_best_model).endswith(LOWER_IS_BETTER):
            return {"eval_data"}
        return {"eval_data", "generation_num_beams", "generation_max_length", *self.metric_settings}

    def _finish(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """Load what a run ended with that was interrupted after its last step."""
        self.state = state
        self._find_best_checkpoint()
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or checkpoint)
        return TrainOutput(state.global_step, 0.0, {})

    def is_finished(self, checkpoint: str) -> bool:
        """Return whether this run ends with a checkpoint, at its last step or before."""
        return self._is_over(TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))))

    def _is_over(self, state: TrainerState) -> bool:
        return state.global_step >= self.total_steps() or find_stop_reason(self.args, state) is not None

    def _init_training_state(self, max_steps: int, *args: Any) -> Any:
        """Load the stock state; intervals and the metric are those of this run, not of the checkpoint."""
        started = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        if self._changed & {"metric_for_best_model", "greater_is_better", *self._scales()}:
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        if STATE_NAME in (states := saved_states(self.state)):
            states[STATE_NAME][COMPARED_FROM] = self._compared_from
        self._find_best_checkpoint()
        return started

    def _find_best_checkpoint(self) -> None:
        """Find the best checkpoint where the run's folder is now; the state has the path of before."""
        if self.state.best_global_step:
            best = Path(str(self.args.output_dir), f"checkpoint-{self.state.best_global_step}")
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Compare a validation with the best one; a new best is saved, also between two checkpoints."""
        is_new = super()._determine_best_metric(*args, **kwargs)
        self.control.should_save |= is_new and self._keeps_best and self.args.save_strategy != SaveStrategy.NO
        return is_new

    @property
    def _keeps_best(self) -> bool:
        """Whether the best checkpoint is kept; otherwise it would stand among the last ones, which are averaged."""
        patience = getattr(self.args, "early_stopping_patience", None)
        is_best_only = self.args.save_strategy == SaveStrategy.BEST
        return bool(self.args.load_best_model_at_end) or patience is not None or is_best_only

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run the stock epoch; with save_strategy best, also save where training ends, to resume from there."""
        super()._run_epoch(*args, **kwargs)
        is_saved = self._saved_step == self.state.global_step
        if self.args.save_strategy == SaveStrategy.BEST and self.control.should_training_stop and not is_saved:
            self._save_checkpoint(kwargs["model"], kwargs["trial"])
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer.

        Raises:
            UserError: There is no such optimizer, or it can't have these arguments.
        """
        try:
            return super().create_optimizer(*args, **kwargs)
        except (ValueError, ImportError, TypeError, KeyError) as error:
            name = OptimizerNames(self.args.optim).value
            raise UserError(f"can't create the optimizer {name}: {first_line(error)}; check optim_args") from error

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Create the learning rate schedule.

        Raises:
            UserError: It can't have these arguments.
        """
        try:
            return super().create_scheduler(*args, **kwargs)
        except (ValueError, TypeError, KeyError) as error:
            name = SchedulerType(self.args.lr_scheduler_type).value
            raise UserError(
                f"can't create the schedule {name}: {first_line(error)}; check lr_scheduler_kwargs"
            ) from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load optimizer and schedule; replace their hyperparameters if those of the run have changed.

        Raises:
            UserError: They can't be read, do not fit the model, or can't be changed.
        """
        if checkpoint is None:
            return
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        fresh = hyperparameters(optimizer)
        check_schedule_change(self._changed, self.lr_scheduler)
        with readable(checkpoint, "optimizer.pt, scheduler.pt or training_weights.safetensors"):
            super()._load_optimizer_and_scheduler(checkpoint)
        check_optimizer_state(optimizer, checkpoint)
        # A longer run has other rates from its first step on. Schedules with a state of their own know no end.
        if self._changed & {*SCHEDULE, "max_steps", "num_train_epochs"} and isinstance(self.lr_scheduler, LambdaLR):
            apply_schedule(optimizer, self.lr_scheduler, fresh)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random number generators.

        Raises:
            UserError: Their state can't be read.
        """
        with readable(str(checkpoint), "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Run the stock step, count tokens, and stop if the loss is not finite.

        Raises:
            UserError: The loss is infinite or NaN.
        """
        labels = inputs["labels"]
        self._tokens += torch.stack([inputs["attention_mask"].sum(), (labels != IGNORED_LABEL).sum()]).to(
            self._tokens.device
        )
        loss = super().training_step(model, inputs, *args)
        if not loss.isfinite():
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: the run stops before it updates the "
                f"weights; {self._last_good_checkpoint()}; try a lower learning_rate or more warmup_steps"
            )
        return loss

    def _last_good_checkpoint(self) -> str:
        """Return a clause for an error message that names the checkpoint to continue from."""
        checkpoint = last_good_checkpoint(str(self.args.output_dir))
        return "no checkpoint was saved before" if checkpoint is None else f"the last good checkpoint is {checkpoint}"

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the model's own loss, with label smoothing (section 5.4) in training; add it up in evaluation."""
        if model.training:
            inputs = inputs | {"smoothing": self.args.label_smoothing_factor}
            # Logits take more memory than all else, and nobody sees them but who asks for the outputs.
            inputs["return_logits"] = return_outputs or self.compute_loss_func is not None
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]  # which a `compute_loss_func` takes out
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.add_likelihood(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Run the stock evaluation; that of `eval_on_start` only where a run starts, not where it is resumed."""
        if skip_scheduler and self.state.global_step > 0:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run the stock evaluation, without counting its time in tokens per second.

        Raises:
            UserError: The model's output is not finite.
        """
        start, clock = time.perf_counter(), self._clock
        try:
            return super().evaluate(*args, **kwargs)
        except ValueError as error:
            if isinstance(error, UserError) or "not finite" not in str(error):
                raise
            raise UserError(
                f"the model's output is not finite after step {self.state.global_step}; "
                f"{self._last_good_checkpoint()}; try a lower learning_rate or more warmup_steps"
            ) from error
        finally:
            self._clock = clock + time.perf_counter() - start  # several data sets are evaluated inside this call

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder that checkpoints are written to: the run's folder, or a temporary one in it."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the stock checkpoint to a temporary folder, and rename it when it is complete.

        Its time does not count in tokens per second.

        Raises:
            UserError: The weights are not finite, the disk is full or the folder can't be written to.
        """
        start = time.perf_counter()
        self._check_weights()
        run_dir = Path(super()._get_output_dir(trial))
        states = saved_states(self.state)
        states[STATE_NAME] = {
            "arguments": self._settings(),
            COMPARED_FROM: self._compared_from,
            MINUTES: self.minutes(start),
            **self.run_settings,
        }
        self._last_line = start  # the minutes before are in the state
        if isinstance(self.train_dataset, TokenStream):
            first_step, taken = self._stream_start
            taken += (self.state.global_step - first_step) * self._accumulation * self.accelerator.num_processes
            states[TokenStream.__name__] = self.train_dataset.position(taken)
        self._staging = run_dir / STAGING_NAME
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step == self.state.global_step:  # and not the temporary path
                self.state.best_model_checkpoint = str(run_dir / f"checkpoint-{self.state.global_step}")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._commit(run_dir)
            self.accelerator.wait_for_everyone()
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save, of the optimizer
            shutil.rmtree(run_dir / STAGING_NAME, ignore_errors=True)
            raise UserError(
                f"can't write the checkpoint of step {self.state.global_step} into {run_dir}: {first_line(error)}; "
                f"{self._last_good_checkpoint()}; free some space and continue with resume_from_checkpoint"
            ) from error
        finally:
            self._staging = None
            self._saved_step = self.state.global_step
            self._clock += time.perf_counter() - start

    def _commit(self, run_dir: Path) -> None:
        """Rename a complete checkpoint, and delete those that are too many."""
        checkpoint = run_dir / f"checkpoint-{self.state.global_step}"
        self.state.save_to_json(str(run_dir / STAGING_NAME / checkpoint.name / TRAINER_STATE_NAME))
        commit_checkpoint(run_dir / STAGING_NAME, checkpoint)
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint if self._keeps_best else None,
            use_mtime=True,
        )

    def _check_weights(self) -> None:
        """Refuse to save weights that are not finite.

        Raises:
            UserError: A weight is infinite or NaN.
        """
        parts = (
            weight.to_local() if isinstance(weight, DTensor) else weight
            for weight in cast(nn.Module, self.model).parameters()
        )
        finite = torch.stack([part.isfinite().all() for part in parts]).all()
        if not self.accelerator.gather(finite[None].int()).all():
            raise UserError(
                f"the weights are not finite after step {self.state.global_step}, so that no checkpoint is saved; "
                f"{self._last_good_checkpoint()}; try a lower learning_rate or more warmup_steps"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the stock trainer does; the weights appear when they are complete.

        Raises:
            UserError: The disk is full or the folder can't be written to.
        """
        if _internal_call:  # of a checkpoint, which is renamed as a whole
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        staging = folder / STAGING_MODEL_NAME
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super().save_model(str(staging), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for file in sorted(staging.iterdir(), key=lambda file: file.name == SAFE_WEIGHTS_NAME):
                    file.replace(folder / file.name)
                staging.rmdir()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise UserError(
                f"can't write the model into {folder}: {first_line(error)}; {self._last_good_checkpoint()}; free some "
                "space and continue with resume_from_checkpoint"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save model, tokenizer and arguments, without the Hub token."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Write the stock log line, with tokens per second (without padding) and, in training, minutes.

        Samples per second are removed: they count `per_device_train_batch_size` sentences per batch.
        """
        logs.pop("train_samples_per_second", None)
        now = time.perf_counter()
        if self.is_in_train:
            logs[MINUTES] = self.minutes(now)
            self._last_line = now
        if "loss" in logs:
            source, target = self.accelerator.gather(self._tokens[None]).sum(0).tolist()
            logs["source_tokens_per_second"] = round(source / (now - self._clock))
            logs["target_tokens_per_second"] = round(target / (now - self._clock))
            self._tokens.zero_()
            self._clock = now
        super().log(logs, *args, **kwargs)

    def _finalize_training(self, *args: Any) -> TrainOutput:
        """End as the stock trainer does, but keep the last checkpoint where the limit is 1 and another is the best."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    def minutes(self, now: float | None = None) -> float:
        """Return the minutes since the run began, those before an interruption included.

        Args:
            now: The time, by `time.perf_counter`.
        """
        now = time.perf_counter() if now is None else now
        return round(logged_minutes(self.state) + (now - self._last_line) / 60, 4)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn about the further names of tied matrices, which are saved once."""
        tied = cast(dict[str, str], cast(PreTrainedModel, self.model).all_tied_weights_keys)
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)
