"""scripts/train.py as a user runs it: from files, interrupted, resumed, fine-tuned, and refused with a sentence."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.data.numbers import number_pairs
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast
from vanilla_transformer.training.checkpoints import find_damage, lock_run
from vanilla_transformer.training.record import read_record, write_record

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
RECIPE = (
    "--warmup_steps 10 --per_device_train_tokens 300 --max_length_ratio 99 "
    "--logging_steps 1 --eval_steps 3 --save_steps 3 --max_eval_samples 2"
).split()
NEW = "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 --vocab_size 300".split()
SMALL = [*NEW, *RECIPE]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """The arguments that name 60 pairs for training and 5 for validation, in files."""
    folder = tmp_path_factory.mktemp("data")
    for split, size in (("train", 60), ("validation", 5)):
        pairs = number_pairs("en", "de", split, size)
        for lang, side in (("en", "source"), ("de", "target")):
            Path(folder, f"{split}.{lang}").write_text("".join(f"{sentence}\n" for sentence in pairs[side]))
    files = ["--train_file", f"{folder}/train", "--validation_file", f"{folder}/validation"]
    return [*files, "--source_lang", "en", "--target_lang", "de"]


def train(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert finished.returncode == expect, finished.stderr[-3000:]
    return finished


def start(*arguments: str) -> subprocess.Popen[str]:
    """Training that goes on while its output is read."""
    return subprocess.Popen(
        [sys.executable, "-u", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # A shell's background job, as tests may be, ignores Ctrl-C, and so would the process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def equal_weights(one: str, other: str) -> bool:
    """Whether the ninth checkpoints of two runs are the same, bit for bit."""
    weights, others = (load_file(Path(run, "checkpoint-9", "model.safetensors")) for run in (one, other))
    return weights.keys() == others.keys() and all((weights[name] == others[name]).all() for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> str:
    """The folder of a run of 9 steps that nothing has interrupted."""
    folder = str(tmp_path_factory.mktemp("whole") / "run")
    first = train("--output_dir", folder, "--max_steps", "9", *data, *SMALL)
    assert "train: kept 60 of 60 pairs" in first.stdout and first.stdout.count("translation ") == 3 * 2
    assert f"The model is in {folder}" in first.stdout
    assert "batches: " in first.stdout and "of their tokens padding" in first.stdout
    assert Path(folder, "training.png").read_bytes().startswith(b"\x89PNG")
    assert "Warning" not in first.stderr
    return folder


def test_a_run_says_what_it_was(whole, data):
    record = read_record(whole)
    assert record["command"].startswith(f"vanilla-transformer train --output_dir {whole} --max_steps 9 --train_file ")
    assert (record["model"]["preset"], record["model"]["vocab_size"]) == ("tiny", 300)
    assert (record["data"]["train_file"], record["data"]["train_pairs"]) == ([data[1]], 60)
    assert record["recipe"]["learning_rate"] == (16 * 10) ** -0.5
    assert record["result"]["steps"] == 9 and record["result"]["minutes"] > 0
    assert record["result"]["validation"]["step"] == 9


def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, data, whole):
    """SIGKILL after step 5, two steps after the last checkpoint."""
    arguments = ["--output_dir", str(tmp_path / "run"), "--max_steps", "9", *data, *SMALL]
    process = start(*arguments)
    steps = 0
    for line in process.stdout:
        steps += "'loss'" in line
        if steps == 5:
            process.kill()
    assert process.wait() == -signal.SIGKILL
    train(*arguments, "--resume_from_checkpoint")
    assert equal_weights(whole, str(tmp_path / "run"))


def test_interrupted_resumed_and_fine_tuned(tmp_path, data, whole):
    """The uninterrupted run of test_resuming.py, at the level of signals and processes."""
    parts = str(tmp_path / "parts")
    arguments = ["--output_dir", parts, "--max_steps", "9", *data, *SMALL]
    process = start(*arguments)
    output = ""
    for line in process.stdout:
        output += line
        if "'loss'" in line and process.poll() is None and "Interrupted" not in output:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, output[-3000:]
    step = int(re.search(r"Stopped at step (\d+); continue with --resume_from_checkpoint", output)[1])
    assert step < 9 and Path(parts, f"checkpoint-{step}", "optimizer.pt").is_file()

    resumed = train(*arguments, "--resume_from_checkpoint")
    assert "missing keys" not in resumed.stderr
    assert equal_weights(whole, parts)

    tuned = str(tmp_path / "tuned")
    train(
        "--output_dir",
        tuned,
        "--model_name_or_path",
        whole,
        "--max_steps",
        "3",
        *data,
        *RECIPE,
        "--config_overrides",
        "dropout=0.4",
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tuned)
    assert (model.config.d_model, model.config.dropout, model.generation_config.num_beams) == (16, 0.4, 4)
    assert Path(tuned, "modeling_vanilla_transformer.py").is_file()
    assert '"PreTrainedTokenizerFast"' in Path(tuned, "tokenizer_config.json").read_text()
    assert PreTrainedTokenizerFast.from_pretrained(tuned).vocab_size == model.config.vocab_size
    began_with = read_record(tuned)["model"]
    assert (began_with["model_name_or_path"], began_with["from_hub"]) == (whole, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_overrides", "d_model=15"], "config_overrides d_model=15: d_model is 15; it must be even"),
        (["--config_overrides", "depth=3"], "config_overrides depth=3: "),
        (["--warmup_steps", "0"], "diverges without warm-up"),
        (["--per_device_train_tokens", "5"], "but a batch may hold 5; raise the token budget"),
        (["--train_file", "no/such/file"], "--train_file and --validation_file go together"),
        (
            ["--train_file", "no/such", "--validation_file", "no/such"],
            "no/such is neither a pair of files here (looked for no/such.en",
        ),
        (["--eval_steps", "2"], "--load_best_model_at_end requires the saving steps"),
        (["--vocab_size", "12"], "vocab_size is 12"),
        (["--model_name_or_path", "no/such/model"], "preset is tiny, but the model no/such/model keeps its size"),
        (["--tokenizer_name", "no/such/tokenizer"], "can't load the tokenizer no/such/tokenizer"),
    ],
)
def test_what_can_not_be_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    few = ["--max_train_samples", "50", "--max_eval_samples", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path / "run"), *SMALL, *few, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.err.strip().splitlines()[-1].startswith("error: ") and message in captured.err


def test_another_runs_folder_is_not_written_into(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    finished = train("--output_dir", str(tmp_path), *SMALL, expect=2)
    assert finished.stderr.strip().endswith("continue the run in it with resume_from_checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def refuse(run_script, *arguments: str, message: str) -> None:
    """Assert that the command ends with status 2 and one line before it trains."""
    code, _, err = run_script("train", *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and message in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_train_samples", "0"),
        ("max_eval_samples", "-1"),
        ("max_steps", "0"),
        ("num_train_epochs", "-3"),
        ("gradient_accumulation_steps", "-1"),
        ("label_smoothing_factor", "2"),
        ("weight_decay", "-1"),
        ("max_length_ratio", "nan"),
        ("learning_rate", "nan"),
        ("seed", "-1"),
        ("adam_beta1", "2"),
        ("metric_for_best_model", "nonsense"),
        ("lr_scheduler_type", "nonsense"),
        ("push_to_hub", "True"),
        ("auto_find_batch_size", "True"),
        ("preprocessing_num_workers", "0"),
        ("shuffle_buffer_size", "0"),
        ("bpe_dropout", "1.5"),
        ("max_minutes", "0"),
        ("early_stopping_patience", "0"),
        ("vocab_size", "0"),
        ("report_to", "nonsense"),
        ("save_total_limit", "0"),
    ],
)
def test_values_out_of_range_are_refused_and_leave_nothing_behind(run_script, tmp_path, option, value):
    folder = tmp_path / "new" / "run"
    few = ["--max_train_samples", "50", "--max_eval_samples", "2"]
    few = few if option not in ("max_train_samples", "max_eval_samples") else []
    recipe = [*NEW, *few, *RECIPE] if option != "vocab_size" else RECIPE
    message = f"{option} is "
    refuse(run_script, "--output_dir", str(folder), *recipe, f"--{option}", value, message=message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_steps", "5", "--num_train_epochs", "1"], "max_steps is 5 and num_train_epochs is 1; give only one"),
        (["--streaming", "--num_train_epochs", "1"], "num_train_epochs needs data of a known length"),
        (["--predict_with_generate", "False"], "it must be one of loss, perplexity as predict_with_generate is False"),
        (["--model_name_or_path", "gone", "--vocab_size", "300"], "vocab_size is 300, but the model gone keeps its"),
        (["--model_name_or_path", "gone", "--tokenizer_name", "x"], "tokenizer_name is x, but the model gone keeps"),
        (["--resume_from_checkpoint", "gone"], "gone is not a complete checkpoint"),
        (["--resume_from_checkpoint"], "to resume from; leave out resume_from_checkpoint to start the run"),
        (
            ["--config_overrides", "eos_token_id=5"],
            "eos_token_id=5: eos_token_id is 2 in the tokenizer",
        ),
        (
            ["--debug", "underflow_overflow"],
            "it must be '' or []: the library's debugger can't examine masks",
        ),
        (["--lr_scheduler_kwargs", '{"power":'], 'lr_scheduler_kwargs is {"power":: '),
        (["--accelerator_config", "no/such"], "accelerator_config is no/such: "),
        (["--source_lang", "fr"], "source_lang and target_lang are both fr; they must differ"),
        (["--generation_config", "no/such"], "generation_config is no/such: "),
    ],
)
def test_options_that_contradict_each_other_are_refused(run_script, tmp_path, arguments, message):
    refuse(run_script, "--output_dir", str(tmp_path / "run"), *RECIPE, *arguments, message=message)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    """A run of one epoch with every kind of option that counts again when it is resumed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ["--num_train_epochs", "1", "--save_total_limit", "9", "--metric_for_best_model", "eval_loss"]
    options += ["--per_device_train_batch_size", "3", "--hub_token", "hf_secret", "--disable_tqdm", "True", "--use_cpu"]
    run = train("--output_dir", str(folder), *data, *SMALL, *options)
    assert "--per_device_train_batch_size has no effect: the size of a batch is per_device_train_tokens" in run.stderr
    assert "--hub_token has no effect: training does not push to the Hub" in run.stderr
    return folder


def test_a_run_lasts_as_many_epochs_as_were_given_and_is_recorded_so(finished):
    record = read_record(finished)
    assert record["result"]["epochs"] == 1 and record["finished"] is True
    assert record["recipe"]["max_steps"] == record["result"]["steps"] < 100
    assert record["recipe"]["num_train_epochs"] == 1
    assert record["recipe"]["metric_for_best_model"] == "eval_loss"
    losses = {line["step"]: line["eval_loss"] for line in log_of(finished) if "eval_loss" in line}
    assert record["result"]["best_step"] == min(losses, key=losses.__getitem__)


def log_of(folder: Path) -> list[dict[str, float]]:
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return json.loads((last / "trainer_state.json").read_text())["log_history"]


def test_no_file_of_a_run_has_the_hub_token(finished):
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert "--hub_token ..." in read_record(finished)["command"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of each file, but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_run_stays_as_it_is(run_script, finished):
    before = contents(finished)
    code, out, err = run_script("train", "--output_dir", str(finished), "--resume_from_checkpoint")
    assert code == 0, err
    assert (
        out.strip().splitlines()[-1] == f"The run in {finished} is finished; nothing is trained and nothing is changed."
    )
    assert contents(finished) == before


def test_a_run_that_was_killed_before_it_kept_its_options_asks_for_them(run_script, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    message = f"the run in {folder} was killed before it kept its options; give them again"
    refuse(run_script, "--output_dir", str(folder), "--resume_from_checkpoint", message=message)


def test_a_run_that_was_stopped_while_its_picture_was_drawn_gets_it_when_resumed(
    run_script, finished, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    write_record(folder, read_record(folder) | {"finished": False})
    (folder / "training.png").rename(folder / "training.png.part")
    resume = ("train", "--output_dir", folder, "--resume_from_checkpoint")

    def press(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vanilla_transformer.commands.train.plot_run", press)
        run_script(*resume)
    assert not (folder / "training.png").exists() and read_record(folder)["finished"] is False
    code, _, err = run_script(*resume)
    assert code == 0, err
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert read_record(folder)["finished"] is True


def test_what_a_run_was_given_counts_again_when_it_is_resumed(run_script, finished, tmp_path):
    """Two more epochs: data, recipe and number of checkpoints are those of before."""
    shutil.copytree(finished, tmp_path / "run")
    before = {path.name for path in finished.glob("checkpoint-*")}
    code, _, err = run_script(
        "train", "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "--num_train_epochs", "3"
    )
    assert code == 0, err
    assert before < {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    record, first = read_record(tmp_path / "run"), read_record(finished)
    assert record["data"] == first["data"] and record["model"] == first["model"]
    changed = {name for name in first["recipe"] if record["recipe"][name] != first["recipe"][name]}
    assert changed == {"max_steps", "num_train_epochs"} and record["result"]["epochs"] == 3


def test_a_run_that_stops_early_says_so_and_is_finished(run_script, tmp_path, data):
    folder = tmp_path / "run"
    first = ["--max_steps", "60", "--early_stopping_patience", "1", "--early_stopping_threshold", "1000"]
    first += ["--max_minutes", "50", "--lr_scheduler_type", "cosine", "--disable_tqdm", "True"]
    code, out, err = run_script("train", "--output_dir", folder, *data, *SMALL, *first)
    assert code == 0, err
    words = (
        "Stopped at step 6 of 60: bleu has not improved for 1 validation. The schedule cosine was planned for all 60."
    )
    assert [line for line in out.splitlines() if "Stopped" in line] == [words]
    assert read_record(folder)["result"]["stopped"] == words
    assert read_record(folder)["recipe"]["early_stopping_patience"] == 1
    resume = ["train", "--output_dir", folder, "--resume_from_checkpoint"]
    code, out, err = run_script(*resume)
    assert code == 0 and "is finished; nothing is trained" in out
    code, out, err = run_script(*resume, "--max_minutes", "0.000001", "--early_stopping_patience", "9")
    assert code == 0 and "is finished; nothing is trained" in out


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--shuffle_buffer_size", "40"]], ids=["data set", "stream"])
def test_bpe_dropout_is_recorded_kept_for_resuming_and_not_in_the_tokenizer(run_script, tmp_path, data, streaming):
    folder = tmp_path / "run"
    first = ["--bpe_dropout", "0.2", "--max_steps", "3", *streaming, "--disable_tqdm", "True"]
    first += ["--max_source_length", "100", "--max_target_length", "100"]
    code, out, err = run_script("train", "--output_dir", folder, *data, *SMALL, *first)
    assert code == 0, err
    resume = ["--output_dir", folder, "--resume_from_checkpoint", "--max_steps", "6"]
    code, out, err = run_script("train", *resume)
    assert code == 0, err
    assert read_record(folder)["data"]["bpe_dropout"] == 0.2 and read_record(folder)["result"]["steps"] == 6
    for file in folder.rglob("tokenizer.json"):
        assert json.loads(file.read_text())["model"]["dropout"] is None
    resume = [*map(str, resume[:-1]), "9", "--bpe_dropout", "0.1"]
    refuse(run_script, *resume, message="bpe_dropout is 0.1, but checkpoint-6 was trained with 0.2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "base"], "preset is base, but checkpoint-"),
        (["--max_source_length", "20"], "the training data, its weights, tokenizer or length limits differ"),
        (["--per_device_train_tokens", "400"], "per_device_train_tokens is 400, but checkpoint-"),
        (["--streaming", "--max_steps", "99"], "was trained without streaming; continue it in the same way"),
    ],
)
def test_what_can_not_change_when_a_run_is_resumed_is_refused(run_script, finished, tmp_path, arguments, message):
    shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path / "run")
    more = [] if "--max_steps" in arguments else ["--num_train_epochs", "3"]
    refuse(
        run_script,
        "--output_dir",
        str(tmp_path / "run"),
        "--resume_from_checkpoint",
        *more,
        *arguments,
        message=message,
    )
    assert contents(tmp_path / "run") == before


def test_a_model_for_another_tokenizer_takes_its_ids(run_script, tmp_path):
    """Of a T5-like tokenizer: padding 0, end 1, no beginning."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<end>", "<unk>"]
    backend.train_from_iterator(
        ["one two"] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    backend.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1".split()
    few = "--max_train_samples 50 --max_steps 2 --use_cpu --disable_tqdm True".split()
    arguments = ["--tokenizer_name", tmp_path / "tokenizer", "--output_dir", tmp_path / "run", *sizes, *few, *RECIPE]
    code, _, err = run_script("train", *arguments, "--vocab_size", "999")
    assert code == 0, err
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    for config in (model.config, model.generation_config):
        ids = (config.pad_token_id, config.eos_token_id, config.bos_token_id, config.decoder_start_token_id)
        assert ids == (0, 1, 0, 0)


def test_the_model_is_saved_though_the_picture_can_not_be_drawn(run_script, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vanilla_transformer.commands.train.plot_run", full)
    few = "--max_train_samples 50 --max_steps 2 --use_cpu --disable_tqdm True".split()
    code, out, err = run_script("train", "--output_dir", tmp_path / "run", *SMALL, *few)
    assert code == 0, err
    assert "no picture of the run: [Errno 28] No space left on device" in out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_second_run_in_the_same_folder_is_refused(run_script, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    lock = lock_run(tmp_path / "run")
    message = "another run writes into"
    refuse(run_script, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", message=message)
    lock.release()


def test_ctrl_c_before_training_ends_without_traceback(data, tmp_path):
    process = start("--output_dir", str(tmp_path / "run"), *data, *SMALL)
    for line in process.stdout:
        if line.startswith("validation: "):  # long before the first step
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130 and "Traceback" not in rest
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def test_a_signal_saves_a_checkpoint_though_nobody_reads_the_output(data, tmp_path):
    """As in `train ... 2>&1 | tee log`, where Ctrl-C ends `tee` too."""
    steps = "--max_steps 900 --eval_steps 900 --save_steps 900".split()
    process = start("--output_dir", str(tmp_path / "run"), *data, *SMALL, *steps)
    next(line for line in process.stdout if "'loss'" in line)
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert find_damage(checkpoint) is None and not read_record(tmp_path / "run")["finished"]


def test_a_run_killed_in_its_first_checkpoint_starts_over_with_its_options(
    run_script, data, tmp_path, monkeypatch, caplog, finished
):
    """By resuming with nothing else on the command line."""

    def kill(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("vanilla_transformer.training.checkpoints.write_manifest", kill)
    options = ["--num_train_epochs", "1", "--metric_for_best_model", "eval_loss", "--disable_tqdm", "True", "--use_cpu"]
    assert run_script("train", "--output_dir", tmp_path / "run", *data, *SMALL, *options)[0] == 130
    monkeypatch.undo()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"tmp-checkpoint", "run.json", ".lock"}
    code, _, err = run_script("train", "--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    assert code == 0, err
    assert "has no complete checkpoint yet: the run starts from the beginning" in caplog.text
    weights, others = (load_file(Path(run, "model.safetensors")) for run in (tmp_path / "run", finished))
    assert all((weights[name] == others[name]).all() for name in weights)
