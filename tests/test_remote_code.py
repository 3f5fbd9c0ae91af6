"""What a save holds, and that it loads where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import EOS, HIDE_THE_PACKAGE, PAD, padded, ragged_batch, random_ids, small_config, small_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import vanilla_transformer
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerModel,
)
from vanilla_transformer.modeling_vanilla_transformer import shift_right

CODE_FILES = {f"{name}_vanilla_transformer.py" for name in ("configuration", "modeling", "kernels", "base")}
AUTO_MAP = {
    "AutoConfig": "configuration_vanilla_transformer.VanillaTransformerConfig",
    "AutoModel": "modeling_vanilla_transformer.VanillaTransformerModel",
    "AutoModelForSeq2SeqLM": "modeling_vanilla_transformer.VanillaTransformerForConditionalGeneration",
}
tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def assert_carries_its_code(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    for name in CODE_FILES:
        assert (folder / name).read_text() == (Path(vanilla_transformer.__file__).parent / name).read_text()


# Saving and loading


@tied_and_untied
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_loaded_model_is_bit_equal(tied, max_shard_size, dtype, tmp_path):
    model, batch = small_model(dtype=dtype, tie_word_embeddings=tied), ragged_batch()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.dtype == dtype and not loaded.training
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    matrices = {id(p) for name, p in loaded.named_parameters() if p.shape == (61, 16)}
    assert len(matrices) == (1 if tied else 3)


@torch.no_grad()
def test_a_model_that_returns_tuples_computes_the_same(tmp_path):
    model, batch = small_model(), ragged_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, return_dict=False)
    for part, expected in ((loaded, model), (loaded.model, model.model)):
        returned = part(**batch, output_attentions=True)
        assert isinstance(returned, tuple)
        assert torch.equal(returned[0], expected(**batch)[0])
        assert part(**batch, output_attentions=True, return_dict=True).keys() == {
            *("logits" if part is loaded else "last_hidden_state", "past_key_values", "encoder_last_hidden_state"),
            *("decoder_attentions", "cross_attentions", "encoder_attentions"),
        }
    for search in ({}, {"num_beams": 2}, {"num_beams": 2, "custom_generate": vanilla_transformer.gnmt_beam_search}):
        arguments = {"attention_mask": batch["attention_mask"], "max_new_tokens": 6, **search}
        assert torch.equal(
            loaded.generate(batch["input_ids"], **arguments), model.generate(batch["input_ids"], **arguments)
        )


def test_the_other_file_of_a_config_is_not_saved_on(tmp_path):
    config = small_config()
    config.configuration_files = ["config.4.0.0.json"]
    VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "configuration_files" not in json.loads((tmp_path / "config.json").read_text())


def test_a_tied_matrix_is_saved_once(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == dict(model.named_parameters()).keys()


def test_a_save_holds_nothing_but_json_code_and_safetensors(tmp_path):
    small_model().save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == CODE_FILES | {"config.json", "generation_config.json", "model.safetensors"}


@tied_and_untied
@torch.no_grad()
def test_base_and_whole_model_load_from_each_other(tied, tmp_path):
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    model.save_pretrained(tmp_path / "whole")
    base, info = VanillaTransformerModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert set(info["unexpected_keys"]) <= {"lm_head.weight"}
    assert torch.equal(model.lm_head(base(**batch).last_hidden_state), model(**batch).logits)
    base.save_pretrained(tmp_path / "base")
    whole, info = VanillaTransformerForConditionalGeneration.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert set(info["missing_keys"]) == (set() if tied else {"lm_head.weight"})
    assert torch.equal(whole(**batch).logits, model(**batch).logits) == tied
    assert torch.equal(whole.model(**batch).last_hidden_state, base(**batch).last_hidden_state)


def test_the_generation_defaults_are_saved(tmp_path):
    model = small_model()
    model.generation_config.num_beams = 4
    model.generation_config.length_penalty = 0.6
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert (loaded.num_beams, loaded.length_penalty) == (4, 0.6)
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id, loaded.decoder_start_token_id) == (
        0,
        1,
        2,
        0,
    )


def test_with_the_package_imported_a_save_loads_as_its_classes_without_trust(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is VanillaTransformerConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is VanillaTransformerModel
    assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is VanillaTransformerForConditionalGeneration
    assert type(AutoModelForSeq2SeqLM.from_config(small_config())) is VanillaTransformerForConditionalGeneration


# The code beside the weights


@pytest.mark.parametrize("what", ["config", "base model", "whole model"])
def test_each_save_names_all_three_classes(what, tmp_path):
    """transformers writes one model class per save; the other Auto class then finds nothing to load."""
    model = small_model()
    {"config": model.config, "base model": model.model, "whole model": model}[what].save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    if what != "config":
        assert_carries_its_code(tmp_path)
    saved_again = tmp_path / "again"
    AutoConfig.from_pretrained(tmp_path).save_pretrained(saved_again)
    assert json.loads((saved_again / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.parametrize("name", sorted(CODE_FILES))
def test_the_code_files_import_what_every_reader_has(name):
    """The readers' transformers looks for imports with a regular expression, and refuses what is not installed."""
    path = Path(vanilla_transformer.__file__).with_name(name)
    absolute, relative = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module, "`from . import x` is not found"
            (relative if node.level else absolute).add(node.module if node.level else node.module.split(".")[0])
    assert relative == set(get_relative_imports(path))
    assert {Path(file).name for file in get_relative_import_files(path)} <= CODE_FILES - {name}
    others = absolute - set(sys.stdlib_module_names)
    assert others <= {"torch", "transformers", "huggingface_hub"}
    assert set(get_imports(path)) - set(sys.stdlib_module_names) == others


WITHOUT_THE_PACKAGE = HIDE_THE_PACKAGE + textwrap.dedent("""
    import sys
    from pathlib import Path
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

    try:
        AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=False)
    except ValueError:
        pass
    else:
        raise AssertionError("loaded without its code")

    for folder in map(Path, sys.argv[1:]):
        expected = torch.load(folder.parent / f"{folder.name}.pt")
        batch = expected["batch"]
        for source, target in ((folder, folder.parent / f"{folder.name}-again"), (None, None)):
            source = source or folder.parent / f"{folder.name}-again"
            config = AutoConfig.from_pretrained(source, trust_remote_code=True)
            base = AutoModel.from_pretrained(source, trust_remote_code=True)
            model = AutoModelForSeq2SeqLM.from_pretrained(source, trust_remote_code=True)
            assert type(config).__name__ == "VanillaTransformerConfig"
            assert type(base).__name__ == "VanillaTransformerModel"
            assert type(model).__name__ == "VanillaTransformerForConditionalGeneration"
            assert type(model).__module__.startswith("transformers_modules.")
            with torch.no_grad():
                assert torch.equal(model(**batch).logits, expected["logits"])
                assert torch.equal(base(**batch).last_hidden_state, expected["states"])
            arguments = {"attention_mask": batch["attention_mask"], "max_new_tokens": 6}
            assert torch.equal(model.generate(batch["input_ids"], **arguments), expected["greedy"])
            assert torch.equal(model.generate(batch["input_ids"], num_beams=3, **arguments), expected["beam"])
            if target:
                model.save_pretrained(target)
        base.save_pretrained(folder.parent / f"{folder.name}-base")
        config.save_pretrained(folder.parent / f"{folder.name}-config")
    assert not [name for name in sys.modules if name.split(".")[0] == "vanilla_transformer"]
""")


def save_expected(model: VanillaTransformerForConditionalGeneration, folder: Path) -> None:
    """Beside the folder: a batch and what the model makes of it."""
    batch = ragged_batch()
    arguments = {"attention_mask": batch["attention_mask"], "max_new_tokens": 6}
    with torch.no_grad():
        expected = {
            "batch": batch,
            "logits": model(**batch).logits,
            "states": model.model(**batch).last_hidden_state,
            "greedy": model.generate(batch["input_ids"], **arguments),
            "beam": model.generate(batch["input_ids"], num_beams=3, **arguments),
        }
    torch.save(expected, folder.parent / f"{folder.name}.pt")


def test_a_save_loads_and_saves_again_where_the_package_is_missing(tmp_path):
    folders = [tmp_path / "tied", tmp_path / "untied"]
    for folder in folders:
        model = small_model(tie_word_embeddings=folder.name == "tied")
        model.save_pretrained(folder)
        save_expected(model, folder)
    trainer = make_trainer(tmp_path / "trainer", max_steps=2)
    trainer.train()
    folders.append(tmp_path / "trainer" / "checkpoint-2")
    save_expected(trainer.model.eval(), folders[-1])

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for folder in folders:
        for saved in (folder, folder.with_name(f"{folder.name}-again"), folder.with_name(f"{folder.name}-base")):
            assert_carries_its_code(saved)
            assert not [path.name for path in saved.glob("*") if path.name.startswith("pytorch_model")]
        config = json.loads((folder.with_name(f"{folder.name}-config") / "config.json").read_text())
        assert config["auto_map"] == AUTO_MAP


# The stock Trainer


def examples() -> list[dict[str, torch.Tensor]]:
    set_seed(5)
    lengths = [(3, 4), (7, 2), (1, 5), (4, 4), (6, 3), (2, 2), (5, 6), (3, 3)]
    return [
        {"input_ids": random_ids(source), "labels": torch.cat([random_ids(target), torch.tensor([EOS])])}
        for source, target in lengths
    ]


def collate(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    input_ids, attention_mask = padded([f["input_ids"] for f in features], 7)
    labels, kept = padded([f["labels"] for f in features], 7)
    labels = labels.masked_fill(kept == 0, -100)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "decoder_input_ids": shift_right(labels, pad_token_id=PAD, decoder_start_token_id=0),
    }


def make_trainer(
    folder: Path, callbacks: list[TrainerCallback] | None = None, dropout: float = 0.2, **arguments
) -> Seq2SeqTrainer:
    """The stock Trainer with a model that is the same each time."""
    data = examples()
    set_seed(6)
    model = VanillaTransformerForConditionalGeneration(small_config(dropout=dropout))
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "save_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(folder, **(defaults | arguments)),
        train_dataset=data,
        data_collator=collate,
        callbacks=callbacks,
    )


class StopAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_interrupted_and_resumed_run_ends_with_the_weights_of_a_whole_one(smoothing, tmp_path):
    arguments = {"max_steps": 5, "label_smoothing_factor": smoothing}
    whole = make_trainer(tmp_path / "whole", **arguments)
    whole.train()
    interrupted = make_trainer(tmp_path / "interrupted", [StopAtStep(2)], **arguments)
    interrupted.train()
    assert interrupted.state.global_step == 2
    resumed = make_trainer(tmp_path / "interrupted", **arguments)
    before = {name: p.detach().clone() for name, p in resumed.model.named_parameters()}
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    for name, weight in whole.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), weight), name
        assert not torch.equal(weight, before[name]), name
    assert_carries_its_code(tmp_path / "interrupted" / "checkpoint-5")


def test_the_trainers_loss_does_not_depend_on_accumulation(tmp_path):
    """Where a model ignores num_items_in_batch, 4 accumulated batches of 2 report 4 times the loss of 1 batch of 8."""
    losses = []
    for size in (8, 2):
        trainer = make_trainer(
            tmp_path / str(size),
            dropout=0.0,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        trainer.train()
        losses.append((trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_trainer_evaluates_and_predicts(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=8, predict_with_generate=True, generation_max_length=6)
    metrics = trainer.evaluate(eval_dataset=examples())
    model, batch = trainer.model.eval(), collate(examples())
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-4)
    predictions = trainer.predict(test_dataset=examples()).predictions
    generated = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_length=6)
    assert predictions[:, : generated.shape[1]].tolist() == generated.tolist()
