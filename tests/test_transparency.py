"""What hooks, replaced modules, other libraries and second derivatives see is what an unoptimised model would show."""

import copy

import pytest
import torch
from helpers import gradients, labels_of, ragged_batch, random_ids, small_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.base_vanilla_transformer import LIMIT_BY_SOURCE

MODULES = [name for name, module in small_model().named_modules() if name and not isinstance(module, nn.ModuleList)]
CALLED = [name for name in MODULES if name != "model.shared"]
LINEARS = [name for name, module in small_model().named_modules() if isinstance(module, nn.Linear)]


def first(output):
    """The tensor of a module's output: of a tuple the first, of a model's output the last hidden state."""
    return output if isinstance(output, torch.Tensor) else output[0]


def batch_with_labels(**kwargs) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    batch = ragged_batch()
    return batch | {"labels": labels_of(batch["decoder_input_ids"])} | kwargs


# Hooks


@pytest.mark.parametrize("training", [False, True])
def test_what_a_forward_hook_keeps_is_never_written_into(training):
    model, batch = small_model(dropout=0.3).train(training), batch_with_labels()
    kept = {}

    def keep(name):
        def hook(module, inputs, output):
            kept[name] = (first(output), first(output).detach().clone())

        return hook

    for name in CALLED:
        model.get_submodule(name).register_forward_hook(keep(name))
    model(**batch).loss.backward()
    assert kept.keys() == set(CALLED)
    for name, (tensor, copied) in kept.items():
        assert torch.equal(tensor, copied), name


def test_a_hook_sees_the_module_applied_to_its_input():
    model, batch = small_model(), ragged_batch()
    for name in LINEARS:
        seen = {}
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.update(input=inputs[0], output=output)
        )
        model(**batch)
        handle.remove()
        linear = model.get_submodule(name)
        torch.testing.assert_close(seen["output"], F.linear(seen["input"], linear.weight, linear.bias))


def test_writing_back_what_a_hook_saw_changes_nothing():
    model, batch = small_model(), ragged_batch()
    expected, values = model(**batch).logits, {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: values.update({name: first(output).clone()})
        )
        for name in LINEARS
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    for name in LINEARS:
        handle = model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: values[name])
        assert torch.equal(model(**batch).logits, expected), name
        handle.remove()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("return_logits", [True, False])
def test_full_backward_hooks_run_on_every_module(dropout, return_logits):
    model, batch = small_model(dropout=dropout).train(), batch_with_labels(return_logits=return_logits)
    hooked = [*LINEARS, *(name for name in CALLED if name.endswith(("norm", "attn", "activation")))]
    called = set()
    for name in hooked:
        model.get_submodule(name).register_full_backward_hook(lambda *_, name=name: called.add(name))
    model(**batch).loss.backward()
    assert called == set(hooked)


def test_hidden_states_and_attentions_keep_their_gradients():
    model, batch = small_model("eager").train(), batch_with_labels()
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    watched = [
        tensor
        for name in ("encoder_hidden_states", "decoder_hidden_states", "encoder_attentions", "cross_attentions")
        for tensor in outputs[name]
    ]
    for tensor in watched:
        tensor.retain_grad()
    outputs.loss.backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in watched)


# The embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_a_hook_on_one_embedding_is_called_for_one_stack(tied):
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    for stack, ids in ((model.get_encoder(), "input_ids"), (model.get_decoder(), "decoder_input_ids")):
        seen = []
        handle = stack.embed_tokens.register_forward_hook(lambda m, inputs, o, seen=seen: seen.append(inputs[0]))
        model(**batch)
        handle.remove()
        assert len(seen) == 1 and torch.equal(seen[0], batch[ids])
    names = dict(model.named_modules())
    assert {"model.encoder.embed_tokens", "model.decoder.embed_tokens"} <= names.keys()
    assert model.get_input_embeddings() is model.model.encoder.embed_tokens


def test_resized_embeddings_stay_a_module_for_each_stack():
    model = small_model()
    model.resize_token_embeddings(70)
    places = (model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head)
    assert len({id(place) for place in places}) == 4
    assert len({id(place.weight) for place in places}) == 1
    assert all(place.weight.shape[0] == 70 for place in places)
    assert {place.num_embeddings for place in places[:3]} == {70}


def test_no_stack_has_an_attribute_that_makes_other_libraries_scale_embeddings():
    model = small_model()
    for stack in (model, model.model, model.get_encoder(), model.get_decoder()):
        assert not hasattr(stack, "embed_scale")


# The output layer and the loss


def test_training_returns_logits_unless_they_are_not_wanted():
    model, batch = small_model().train(), batch_with_labels()
    assert model(**batch).logits.shape == (3, 7, 61)
    assert model(**batch, return_logits=False).logits is None


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_a_hook_on_the_output_layer_takes_effect(return_logits, training):
    model, batch = small_model(dropout=0.0).train(training), batch_with_labels(return_logits=return_logits)
    before = model(**batch).loss
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    after = model(**batch).loss
    inputs = {name: tensor for name, tensor in batch.items() if name.endswith(("ids", "mask"))}
    logits = 2 * F.linear(model.model(**inputs).last_hidden_state, model.lm_head.weight)
    torch.testing.assert_close(after, F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()))
    assert not torch.isclose(before, after)


@pytest.mark.parametrize("return_logits", [True, False])
def test_another_output_layer_takes_effect(return_logits):
    model, batch = small_model(tie_word_embeddings=False).train(), batch_with_labels(return_logits=return_logits)
    for replace in (
        lambda model: setattr(model, "lm_head", nn.Sequential(model.lm_head, nn.Tanh())),
        lambda model: setattr(model.lm_head, "forward", lambda x: torch.zeros(*x.shape[:-1], 61)),
        lambda model: nn.utils.parametrizations.weight_norm(model.lm_head),
    ):
        changed = copy.deepcopy(model)
        replace(changed)
        expected = changed(**{**batch, "return_logits": True})
        torch.testing.assert_close(changed(**batch).loss, expected.loss)


@pytest.mark.parametrize("name", [name for name in LINEARS if name != "lm_head"])
def test_a_replaced_module_trains(name):
    model, batch = small_model(dropout=0.1).train(), batch_with_labels()
    parent, _, child = name.rpartition(".")
    replaced = nn.Sequential(model.get_submodule(name), nn.Tanh())
    setattr(model.get_submodule(parent), child, replaced)
    model(**batch).loss.backward()
    assert replaced[0].weight.grad.isfinite().all() and replaced[0].weight.grad.any()


@pytest.mark.parametrize(("sources", "targets"), [(4, 2), (2, 4), (2, 3), (3, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_other_numbers_of_sources_and_targets_are_refused(sources, targets, training):
    model = small_model().train(training)
    message = f"There are {sources} sources and {targets} targets"
    ids = random_ids(sources, 6)
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, labels=random_ids(targets, 6))
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, decoder_input_ids=random_ids(targets, 6))
    with pytest.raises(ValueError, match=message):
        model(encoder_outputs=model.get_encoder()(ids), decoder_input_ids=random_ids(targets, 6))
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, decoder_inputs_embeds=torch.randn(targets, 6, 16))


# Derivatives


def hessian_vector_product(model, batch):
    parameters = list(model.parameters())
    torch.manual_seed(0)
    loss = model(**batch, smoothing=0.1).loss
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    return torch.autograd.grad(sum((grad * grad.detach()).sum() for grad in grads), parameters)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives_are_right(dropout):
    """Compared with differences of first derivatives, with the same dropout."""
    model = small_model("eager", torch.float64, dropout=dropout).train()
    batch, step = batch_with_labels(), 1e-5
    product = hessian_vector_product(model, batch)

    def first_derivatives(model):
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch, smoothing=0.1).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    direction = first_derivatives(model)
    shifted = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, d in zip(moved.parameters(), direction, strict=True):
                parameter.add_(d, alpha=sign * step)
        shifted.append(first_derivatives(moved))
    for found, plus, minus in zip(product, *shifted, strict=True):
        torch.testing.assert_close(found, (plus - minus) / (2 * step), rtol=1e-3, atol=1e-3)


def test_second_derivatives_of_the_loss_without_logits_are_refused():
    model, batch = small_model(dropout=0.0).train(), batch_with_labels(return_logits=False)
    loss = model(**batch).loss
    with pytest.raises(RuntimeError, match="first derivatives only; for second ones"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize("return_logits", [True, False])
def test_torch_func_differentiates_a_training_step(return_logits):
    model, batch = small_model("eager", dropout=0.0).train(), batch_with_labels(return_logits=return_logits)
    model(**batch).loss.backward()
    expected = gradients(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, kwargs=batch).loss

    found = torch.func.grad(loss)(parameters)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


# Limits of generate()


def test_the_stock_trainer_keeps_the_limit_by_the_source(tmp_path):
    model = small_model()
    limits = []

    class Watched(VanillaTransformerForConditionalGeneration):
        def _prepare_generated_length(self, **kwargs):
            config = super()._prepare_generated_length(**kwargs)
            limits.append((kwargs["inputs_tensor"].shape[1], config.max_length - 1))
            return config

    model.__class__ = Watched
    rows = [{"input_ids": random_ids(n).tolist() + [2], "labels": random_ids(n).tolist() + [2]} for n in (9, 5, 7)]

    def collate(features):
        (row,) = features
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, per_device_eval_batch_size=1, report_to="none", use_cpu=True
    )
    Seq2SeqTrainer(model, arguments, collate).predict(rows)
    assert limits == [(length, length + 50) for length in (10, 6, 8)]
    model.__class__ = VanillaTransformerForConditionalGeneration
    model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").max_length == LIMIT_BY_SOURCE
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    loaded.generation_config.eos_token_id = None
    assert loaded.generate(random_ids(1, 4)).shape[1] == 1 + 4 + 50


@pytest.mark.parametrize(
    ("setting", "length"),
    [({"max_length": 9}, 9), ({"max_new_tokens": 5}, 6), ({"max_length": 20}, 20)],
    ids=["max_length", "max_new_tokens", "the library's default, given"],
)
def test_a_limit_that_is_given_counts_in_any_form(setting, length):
    model, ids = small_model(), random_ids(2, 6)
    model.generation_config.eos_token_id = None
    assert model.generate(ids, **setting).shape[1] == length
    assert model.generate(ids, generation_config=GenerationConfig(pad_token_id=1, **setting)).shape[1] == length
    model.generation_config = GenerationConfig(bos_token_id=0, pad_token_id=1, decoder_start_token_id=0, **setting)
    assert model.generate(ids).shape[1] == length


def test_a_generation_config_that_is_assigned_is_not_changed():
    given = GenerationConfig(num_beams=3)
    model = small_model()
    model.generation_config = given
    assert given.max_length is None and model.generation_config.num_beams == 3


# Subclasses


DERIVED = """
from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration


class DerivedConfig(VanillaTransformerConfig):
    model_type = "derived_transformer"


class Derived(VanillaTransformerForConditionalGeneration):
    config_class = {config}

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output
"""


@pytest.mark.parametrize("config", ["VanillaTransformerConfig", "DerivedConfig"])
def test_a_saved_subclass_comes_back_with_its_own_code(config, tmp_path, monkeypatch):
    name = f"derived_{config.lower()}"
    (tmp_path / f"{name}.py").write_text(DERIVED.format(config=config))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    model = small_model()
    fields = model.config.to_dict()
    del fields["auto_map"], fields["model_type"]
    derived = module.Derived(getattr(module, config)(**fields)).eval()
    derived.load_state_dict(model.state_dict())
    derived.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    assert type(loaded).__name__ == "Derived" and type(loaded.config).__name__ == config
    batch = ragged_batch()
    torch.testing.assert_close(loaded(**batch).logits, 2 * model(**batch).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert type(again).__name__ == "Derived"


def test_references_to_code_elsewhere_are_not_saved_on(tmp_path):
    model = small_model()
    model.config.auto_map["AutoTokenizer"] = [None, "stranger/code--tokenization.Tokenizer"]
    model.config.auto_map["AutoModel"] = "stranger/code--modeling.Model"
    model.save_pretrained(tmp_path)
    assert "stranger" not in (tmp_path / "config.json").read_text()
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "VanillaTransformerModel"
