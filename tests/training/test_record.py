"""What a run writes about itself; that the command `train` does is in tests/commands/test_train.py."""

import pytest
import torch
import transformers
from helpers import one_layer_config
from transformers import TrainerControl, TrainerState

import vanilla_transformer
from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.recipe import PaperTrainingArguments
from vanilla_transformer.training.record import RunRecorder, read_record, write_record


@pytest.fixture
def arguments(tmp_path) -> PaperTrainingArguments:
    return PaperTrainingArguments(str(tmp_path), max_steps=7, warmup_steps=3, hub_token="hf_secret", use_cpu=True)


def state(**changes) -> TrainerState:
    log = [{"loss": 2.0, "minutes": 0.5}, {"eval_loss": 1.5, "minutes": 1.0}, {"minutes": 1.2}, {"eval_loss": 9.0}]
    return TrainerState(global_step=5, epoch=0.5, best_global_step=4, log_history=log, **changes)


def test_a_record_holds_what_the_run_was_and_no_secret(arguments, tmp_path):
    command = ["python", "scripts/train.py", "--hub_token", "hf_secret", "--run_name", "two words"]
    recorder = RunRecorder(command, data={"train_file": "data/train"})
    recorder.on_save(arguments, state(is_world_process_zero=False), TrainerControl())
    assert not list(tmp_path.iterdir())
    recorder.on_save(arguments, state(), TrainerControl())
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    record = read_record(tmp_path)
    assert "hf_secret" not in (tmp_path / "run.json").read_text()
    assert record["command"] == "python scripts/train.py --hub_token ... --run_name 'two words'"
    assert record["data"] == {"train_file": "data/train"}
    recipe = record["recipe"]
    assert (recipe["max_steps"], recipe["warmup_steps"], recipe["adam_beta2"]) == (7, 3, 0.98)
    assert (recipe["lr_scheduler_type"], recipe["label_smoothing_factor"]) == ("inverse_sqrt", 0.1)
    assert record["result"] == {
        "steps": 5,
        "epochs": 0.5,
        "minutes": 1.2,
        "stopped": None,
        "validation": {"eval_loss": 9.0},
        "best_step": 4,
    }
    assert record["machine"] == {"device": "cpu", "processes": 1, "threads": torch.get_num_threads()}
    versions = record["versions"]
    assert versions["vanilla_transformer"] == vanilla_transformer.__version__
    assert versions["transformers"] == transformers.__version__ and versions["torch"] == torch.__version__


def test_the_end_of_a_run_is_recorded_over_the_last_checkpoint(arguments, tmp_path):
    recorder = RunRecorder(["train"])
    recorder.on_save(arguments, state(), TrainerControl())
    end = state()
    end.global_step = 7
    recorder.on_train_end(arguments, end, TrainerControl())
    assert read_record(tmp_path)["result"]["steps"] == 7


def test_a_record_goes_along_with_checkpoint_and_average(tmp_path):
    tokenizer = train_tokenizer(["a dog"] * 2, 270)
    checkpoints = [tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4)]
    for checkpoint in checkpoints:
        VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer)).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
    average_checkpoints(checkpoints, tmp_path / "without")
    assert read_record(tmp_path / "without") == {}
    write_record(tmp_path / "run", {"command": "train"})
    average_checkpoints(checkpoints, tmp_path / "with")
    assert read_record(tmp_path / "run") == {"command": "train"}
    assert read_record(checkpoints[1]) == {"command": "train", "weights": ["checkpoint-4"]}
    assert read_record(tmp_path / "with") == {"command": "train", "weights": ["checkpoint-2", "checkpoint-4"]}
    assert read_record("no/such/folder") == {}


@pytest.mark.parametrize(("content", "message"), [('{"command": ', "can't be read: "), ("[]", "no JSON object")])
def test_a_record_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=f"run.json (holds )?{message}"):
        read_record(tmp_path)


def test_a_record_from_elsewhere_is_written_on_without_its_tokens(tmp_path):
    token = "hf_" + "a1B2" * 8
    write_record(
        tmp_path, {"command": f"train --hub_token {token}", "data": {"train_file": f"https://me:{token}@host/x"}}
    )
    assert token not in (tmp_path / "run.json").read_text()
    assert read_record(tmp_path)["command"] == "train --hub_token ***"


def test_a_record_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="can't be read"):
        read_record(tmp_path)
