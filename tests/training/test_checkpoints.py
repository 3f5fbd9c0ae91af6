"""Checkpoints: complete or not there, and which one a run continues from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import equal_weights, make_arguments, make_model, make_trainer, run
from transformers import (
    TrainerCallback,
)

from vanilla_transformer.errors import UserError
from vanilla_transformer.training.averaging import last_checkpoints
from vanilla_transformer.training.checkpoints import (
    checkpoint_to_resume,
    find_damage,
    last_good_checkpoint,
    lock_run,
    remove_if_unused,
)
from vanilla_transformer.training.record import RunRecorder


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


@pytest.fixture(scope="module")
def two(tmp_path_factory, tokenizer, dataset) -> Path:
    """A run with checkpoints 4 and 8."""
    return run(tmp_path_factory.mktemp("two") / "run", tokenizer, dataset, steps=8)


def test_a_checkpoint_appears_under_its_name_when_it_is_complete(tmp_path, tokenizer, dataset, monkeypatch):
    """Killed while it writes the first checkpoint, a run starts over, by the same command and by resuming."""

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vanilla_transformer.training.checkpoints.write_manifest", kill)
    lock = lock_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tokenizer, dataset)
    lock.release()
    assert {path.name for path in tmp_path.iterdir()} == {"tmp-checkpoint", ".lock"}
    assert (tmp_path / "tmp-checkpoint" / "checkpoint-4" / "trainer_state.json").is_file()
    assert checkpoint_to_resume(tmp_path, None) is None and checkpoint_to_resume(tmp_path, "last") is None
    monkeypatch.undo()
    assert equal_weights(run(tmp_path, tokenizer, dataset), run(tmp_path.with_name("other"), tokenizer, dataset))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["changed", "missing", "cut off"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(two, tmp_path, name, damage):
    shutil.copytree(two, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-8" / name
    content = file.read_bytes()
    if damage == "changed":
        file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        with pytest.raises(UserError, match=rf"{name} is damaged: .*; continue from .* resume_from_checkpoint .*-4$"):
            checkpoint_to_resume(tmp_path / "run", "last")
    else:
        file.unlink() if damage == "missing" else file.write_bytes(content[:-1])
        assert checkpoint_to_resume(tmp_path / "run", "last") == str(tmp_path / "run" / "checkpoint-4")
        with pytest.raises(UserError, match="checkpoint-8 is not a complete checkpoint"):
            checkpoint_to_resume(tmp_path / "run", str(tmp_path / "run" / "checkpoint-8"))
    assert checkpoint_to_resume(tmp_path / "run", str(tmp_path / "run" / "checkpoint-4")) is not None


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", b"\x80\x04N."])
def test_a_checkpoint_without_manifest_is_refused_if_its_state_can_not_be_read(
    two, tmp_path, tokenizer, dataset, name, content
):
    """As from the stock trainer."""
    shutil.copytree(two, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-8"
    (checkpoint / "manifest.json").unlink()
    (checkpoint / name).unlink() if content is None else (checkpoint / name).write_bytes(content)
    with pytest.raises(
        UserError, match="can't continue from .*checkpoint-8: .*" + name.replace("rng_state.pth", "rng")
    ):
        run(tmp_path / "run", tokenizer, dataset, resume=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_checkpoint_that_is_named_is_checked_as_the_last_one(two, tmp_path, tokenizer, dataset, name):
    """The stock trainer begins optimizer and schedule anew without a word."""
    shutil.copytree(two, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-8"
    (checkpoint / "manifest.json").unlink()
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=rf"checkpoint-8.*{name}"):
        run(tmp_path / "run", tokenizer, dataset, resume=str(checkpoint))


def test_a_checkpoint_of_deepspeed_has_its_optimizer_elsewhere(two, tmp_path):
    checkpoint = Path(shutil.copytree(two / "checkpoint-8", tmp_path / "checkpoint-8"))
    for name in ("manifest.json", "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    assert find_damage(checkpoint) == f"{checkpoint / 'optimizer.pt'} is missing"
    (checkpoint / "global_step8").mkdir()
    assert find_damage(checkpoint) is None


def test_a_damaged_checkpoint_may_have_any_name(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    best = (tmp_path / "run" / "checkpoint-8").rename(tmp_path / "run" / "best")
    content = (best / "optimizer.pt").read_bytes()
    (best / "optimizer.pt").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match="can't continue from best: .*optimizer.pt is damaged: .*run/checkpoint-4$"):
        checkpoint_to_resume(tmp_path / "run", str(best))


def test_a_run_that_goes_back_says_that_later_checkpoints_stay(two, tmp_path, caplog):
    shutil.copytree(two, tmp_path / "run")
    assert checkpoint_to_resume(tmp_path / "run", str(tmp_path / "run" / "checkpoint-8")) and not caplog.text
    checkpoint_to_resume(tmp_path / "new", str(tmp_path / "run" / "checkpoint-4"))
    assert not caplog.text
    checkpoint_to_resume(tmp_path / "run", str(tmp_path / "run" / "checkpoint-4"))
    assert "run has later checkpoints, up to checkpoint-8: until this run is past them, resume_from_" in caplog.text


def test_an_optimizer_whose_moments_have_other_shapes_is_resumed(tmp_path, tokenizer, dataset):
    """Adafactor keeps sums of rows and columns."""

    def train(folder: Path, steps: int, resume: bool = False) -> None:
        settings = {"optim": "adafactor", "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
        arguments = make_arguments(folder, max_steps=steps, **settings)
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
        trainer.train(resume_from_checkpoint=resume)

    train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    train(tmp_path / "parts", 4, resume=True)
    assert equal_weights(tmp_path / "whole" / "checkpoint-4", tmp_path / "parts" / "checkpoint-4")


def test_an_adapter_of_peft_is_a_good_checkpoint_too(tmp_path, tokenizer, dataset):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj"])
    model = peft.get_peft_model(make_model(tokenizer), adapter)
    arguments = make_arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    make_trainer(model, arguments, tokenizer, dataset).train()
    assert last_good_checkpoint(tmp_path).name == "checkpoint-2"


def test_an_optimizer_of_another_model_is_refused(two, tmp_path, tokenizer, dataset):
    shutil.copytree(two, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-8"
    (checkpoint / "manifest.json").unlink()
    state = torch.load(checkpoint / "optimizer.pt")
    for moments in state["state"].values():
        moments["exp_avg"] = moments["exp_avg"][..., :1].clone()
    torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="its optimizer.pt does not fit the model"):
        run(tmp_path / "run", tokenizer, dataset, resume=True)


def test_a_second_run_is_kept_out_of_the_folder_until_the_first_ends(tmp_path):
    lock = lock_run(tmp_path)
    with pytest.raises(UserError, match="another run writes into .*; wait until it ends, or give another folder"):
        lock_run(tmp_path)
    lock.release()
    lock_run(tmp_path).release()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        f"from vanilla_transformer.training.checkpoints import lock_run\n"
        f"lock = lock_run({str(tmp_path)!r})\nprint('locked', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another run"):
        lock_run(tmp_path)
    process.kill()
    process.communicate()
    lock_run(tmp_path).release()


def test_a_folder_that_was_not_used_is_removed_again(tmp_path):
    for folder, left in ((tmp_path / "a" / "b", []), (tmp_path, [])):
        with remove_if_unused(folder):
            assert checkpoint_to_resume(folder, None) is None
            lock_run(folder).release()
        assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == left
    with remove_if_unused(tmp_path / "used"):
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "file").touch()
    assert (tmp_path / "used" / "file").is_file()


def test_resuming_never_takes_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(
        UserError, match="no complete checkpoint in .*; give the folder of a run, or another output_dir"
    ):
        checkpoint_to_resume(tmp_path, "last")


def test_weights_that_are_not_finite_are_never_saved_nor_called_good(tmp_path, tokenizer, dataset):
    class PoisonAtEnd(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 8:
                model.model.encoder.layers[0].fc1.weight.data[0, 0] = float("nan")

    with pytest.raises(UserError, match="weights are not finite after step 8, .* the last good .*checkpoint-4; try"):
        run(tmp_path, tokenizer, dataset, callbacks=[PoisonAtEnd()])
    assert not (tmp_path / "checkpoint-8").exists()
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-5")
    weights = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()},
        tmp_path / "checkpoint-5" / "model.safetensors",
    )
    assert last_good_checkpoint(tmp_path).name == "checkpoint-4"


def test_a_hub_token_is_nowhere_on_the_disk(tmp_path, tokenizer, dataset):
    arguments = make_arguments(
        tmp_path / "run",
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        hub_token="hf_secret",
        report_to="tensorboard",
    )
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[RunRecorder(["train"])])
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert arguments.hub_token == "hf_secret"


def test_the_final_model_appears_when_it_is_complete(tmp_path, tokenizer, dataset, monkeypatch):
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path / "run"), tokenizer, dataset)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="can't write the model into .*run: .*No space left on device; no checkpoint"):
        trainer.save_model()
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.undo()
    trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").is_file() and not (tmp_path / "run" / "tmp-model").exists()


def test_a_checkpoint_is_not_continued_in_the_folder_of_another_run(tmp_path, tokenizer, dataset):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        run(folder, tokenizer, dataset, steps=4)
    with pytest.raises(UserError, match="other is not empty, and .*one/checkpoint-4 is of another run; give another"):
        checkpoint_to_resume(other, str(one / "checkpoint-4"))
    assert checkpoint_to_resume(tmp_path / "new", str(one / "checkpoint-4")) == str(one / "checkpoint-4")
    assert checkpoint_to_resume(one, str(one / "checkpoint-4")) == str(one / "checkpoint-4")
