"""LoRA by the library PEFT: the usual names of layers are targets, adapters train, are saved and loaded, and merge."""

import warnings
from pathlib import Path

import pytest
import torch
from helpers import SIZES, labels_of, ragged_batch, random_ids, small_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, set_seed

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.convert.marian import to_marian
from vanilla_transformer.data.tokenization import SPECIAL_TOKENS, dictionary_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.modeling_vanilla_transformer import cross_entropy

peft = pytest.importorskip("peft")

TARGETS = {
    "attention": ["q_proj", "v_proj"],
    "every layer": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
TOKENIZER = dictionary_tokenizer([*SPECIAL_TOKENS, *map(str, range(4, SIZES["vocab_size"]))])
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
targets = pytest.mark.parametrize("target_modules", TARGETS.values(), ids=TARGETS)
tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def base_model(tied: bool = True) -> VanillaTransformerForConditionalGeneration:
    """The same one each time."""
    set_seed(7)
    return small_model(tie_word_embeddings=tied)


def with_adapter(model: VanillaTransformerForConditionalGeneration, **config) -> "peft.PeftModel":
    defaults = {"task_type": "SEQ_2_SEQ_LM", "target_modules": TARGETS["attention"], "r": 4}
    return peft.get_peft_model(model, peft.LoraConfig(**(defaults | config)))


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def moved(model: "peft.PeftModel") -> "peft.PeftModel":
    """With all that is trained away from where it starts: LoRA's second matrix is zero at first."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses = []

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(model: torch.nn.Module, folder: Path, **arguments) -> list[float]:
    """The losses of the stock Trainer on eight pairs."""
    set_seed(8)
    pairs = [
        {"input_ids": random_ids(i % 5 + 2).tolist(), "labels": [*random_ids(i % 4 + 1).tolist(), 2]} for i in range(8)
    ]
    losses = Losses()
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.02,
        "max_steps": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(folder, **(defaults | arguments)),
        train_dataset=pairs,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
        callbacks=[losses],
    ).train()
    return losses.losses


@targets
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_stock_trainer_trains_the_adapter_and_nothing_else(target_modules, smoothing, tmp_path):
    model = with_adapter(base_model(), target_modules=target_modules)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapters = trainable(model)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapters}
    assert layers == set(target_modules) and all(".lora_" in name for name in adapters)
    losses = train(model, tmp_path, label_smoothing_factor=smoothing)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in adapters), name


def test_the_loss_under_an_adapter_does_not_depend_on_accumulation(tmp_path):
    losses = [
        train(
            with_adapter(base_model(), lora_dropout=0.0),
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        for size in (8, 2)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@targets
@tied_and_untied
@torch.no_grad()
def test_an_adapter_is_saved_alone_and_loads_onto_a_fresh_model(target_modules, tied, tmp_path):
    base_model(tied).save_pretrained(tmp_path / "base")
    base = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path / "base")
    model, batch = moved(with_adapter(base, target_modules=target_modules)), ragged_batch()
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    onto_given = peft.PeftModel.from_pretrained(base_model(tied), tmp_path / "adapter").eval()
    found = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter").eval()
    for loaded in (onto_given, found):
        assert torch.equal(loaded(**batch).logits, expected)
    assert not torch.allclose(base_model(tied)(**batch).logits, expected, atol=0.1)


@targets
@tied_and_untied
@torch.no_grad()
def test_the_merged_model_is_an_ordinary_one_with_the_adapters_output(target_modules, tied, tmp_path):
    model, batch = moved(with_adapter(base_model(tied), target_modules=target_modules)), ragged_batch()
    expected = model(**batch).logits
    settings = [{"input_ids": batch["input_ids"], "num_beams": beams, "max_new_tokens": 8} for beams in (1, 3)]
    generated = [model.generate(**arguments) for arguments in settings]
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch).logits, base_model(tied)(**batch).logits)
    merged = model.merge_and_unload()
    assert type(merged) is VanillaTransformerForConditionalGeneration
    torch.testing.assert_close(merged(**batch).logits, expected, **CLOSE)
    for arguments, ids in zip(settings, generated, strict=True):
        assert torch.equal(merged.generate(**arguments), ids)
    merged.save_pretrained(tmp_path)
    loaded, info = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(**batch).logits, merged(**batch).logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_adapter_on_the_output_layer_has_the_gradients_of_its_logits(smoothing):
    """The loss in chunks knows the output layer's matrix only."""
    model = moved(with_adapter(base_model(tied=False), target_modules=["fc1", "lm_head"])).train()
    batch = ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    grads = []
    for loss in (
        model(**batch, labels=labels, smoothing=smoothing).loss,
        cross_entropy(model(**batch).logits, labels, smoothing),
    ):
        model.zero_grad()
        loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert any("lm_head.lora_A" in name and grad.any() for name, grad in grads[0].items())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], **CLOSE, msg=name)


@tied_and_untied
def test_a_new_output_layer_is_trained_saved_and_loaded_and_peft_warns_where_it_is_tied(tied, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = with_adapter(base_model(tied), modules_to_save=["lm_head"])
    assert any("tied layer is part of the adapter" in str(warning.message) for warning in caught) == tied
    before = trainable(model)
    train(model, tmp_path / "run")
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainable(model).items())
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base_model(tied), tmp_path / "adapter").eval()
    batch = ragged_batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@tied_and_untied
def test_a_merged_new_output_layer_is_saved_and_then_converted(tied, tmp_path):
    """PEFT unties the config of the tied model and leaves `shared` where it is."""
    batch = ragged_batch()
    merged = moved(with_adapter(base_model(tied), modules_to_save=["lm_head"])).merge_and_unload()
    assert merged.config.tie_word_embeddings is False
    expected, names = merged(**batch).logits, list(merged.state_dict())
    if tied:
        with pytest.raises(UserError, match="untied after it was made"):
            to_marian(merged)
    merged.save_pretrained(tmp_path)
    assert list(merged.state_dict()) == names
    loaded, report = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded(**batch).logits, expected)
    real = batch["decoder_attention_mask"].bool()
    torch.testing.assert_close(to_marian(loaded)(**batch).logits[real], expected[real], **CLOSE)


@tied_and_untied
def test_new_tokens_can_be_trained_beside_an_adapter(tied, tmp_path):
    """PEFT follows tied matrices from `get_input_embeddings`: an adapter of rows must reach all three places."""
    size = SIZES["vocab_size"]
    model = base_model(tied)
    model.resize_token_embeddings(size + 2)
    model.save_pretrained(tmp_path / "base")
    rows = [size, size + 1]
    names = {"embed_tokens": rows} if tied else {"embed_tokens": rows, "lm_head": rows}
    adapted = moved(with_adapter(model, trainable_token_indices=rows if tied else names))
    batch = ragged_batch()
    batch["input_ids"][:2, :2] = batch["decoder_input_ids"][:2, :2] = torch.tensor(rows)
    labels = labels_of(batch["decoder_input_ids"])
    adapted(**batch, labels=labels).loss.backward()
    deltas = {name: p.grad for name, p in adapted.named_parameters() if "trainable_tokens_delta" in name}
    assert len(deltas) == (1 if tied else 3) and all(grad.abs().sum(-1).all() for grad in deltas.values())

    with torch.no_grad():
        expected = adapted(**batch).logits
        adapted.save_pretrained(tmp_path / "adapter")
        base = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path / "base")
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(loaded(**batch).logits, expected)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, **CLOSE)
        assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == tied


def test_peft_asks_for_the_targets_since_it_does_not_know_the_model():
    with pytest.raises(ValueError, match="target_modules"):
        with_adapter(base_model(), target_modules=None)
    model = with_adapter(base_model(), target_modules="all-linear")
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)}
    assert layers == set(TARGETS["every layer"])  # not the output layer
