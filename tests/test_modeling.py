"""The model: embeddings, checkpointing, outputs, precision and compilation."""

import copy
import math
import pickle

import pytest
import torch
from helpers import PAD, gradients, labels_of, ragged_batch, random_ids, small_config, small_model
from safetensors.torch import load_file
from torch.autograd import forward_ad
from torch.nn import functional as F
from transformers import set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer import kernels_vanilla_transformer as kernels
from vanilla_transformer.base_vanilla_transformer import with_weight_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
eager_and_sdpa = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


# Embeddings


def test_tied_weights_are_one_tensor_under_three_names():
    model = small_model()
    weights = [model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head]
    assert len({id(module.weight) for module in weights}) == 1
    assert len([name for name, _ in model.named_parameters() if "embed" in name or "shared" in name]) == 1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_untied_weights_are_three_tensors():
    model = small_model(tie_word_embeddings=False)
    matrices = {name for name, parameter in model.named_parameters() if parameter.shape == (61, 16)}
    assert matrices == {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert model.model.shared is None
    batch = ragged_batch()
    model(**batch, labels=labels_of(batch["decoder_input_ids"])).loss.backward()
    source, target, output = (model.get_parameter(name).grad for name in sorted(matrices, reverse=True))
    used = torch.zeros(61, dtype=torch.bool)
    used[batch["input_ids"][batch["attention_mask"].bool()]] = True
    encoder_grad = model.model.encoder.embed_tokens.weight.grad
    assert torch.equal(encoder_grad.abs().sum(-1) > 0, used)
    assert all(grad.abs().sum() > 0 for grad in (source, target, output))


@tied_and_untied
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(tied, use_reentrant):
    """Bart and Marian lose the gradient of an untied embedding here."""
    model, batch = small_model(tie_word_embeddings=tied, dropout=0.2).train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    calls = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        set_seed(3)
        model(**batch, labels=labels).loss.backward()
        results.append(gradients(model))
    assert len(calls) == 3, "once without checkpointing, twice with"
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, **CLOSE, msg=name)
        assert grad.abs().sum() > 0 or "k_proj.bias" in name, name


@tied_and_untied
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_frozen_weights_can_be_checkpointed(tied, use_reentrant):
    """As PEFT does: everything frozen but a few weights inside, gradients flowing through frozen embeddings."""
    model, batch = small_model(tie_word_embeddings=tied).train().requires_grad_(False), ragged_batch()
    trained = [stack.layers[0].self_attn.q_proj.weight for stack in (model.model.encoder, model.model.decoder)]
    for weight in trained:
        weight.requires_grad_(True)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**batch, labels=batch["decoder_input_ids"]).loss.backward()
        results.append([weight.grad.clone() for weight in trained])
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(checkpointed, plain, **CLOSE)


@tied_and_untied
@pytest.mark.parametrize("size", [70, 50])
def test_resizing_reaches_all_matrices(tied, size, tmp_path):
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    batch = {name: tensor.clamp(max=49) for name, tensor in batch.items()}
    before = copy.deepcopy(model)
    expected = before(**batch).logits
    embeddings = model.resize_token_embeddings(size)
    assert embeddings is model.get_input_embeddings()
    assert model.config.vocab_size == size
    kept = min(size, 61)
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        weight = model.get_submodule(name).weight
        assert weight.shape == (size, 16)
        assert torch.equal(weight[:kept], before.get_submodule(name).weight[:kept])
        assert getattr(model.get_submodule(name), "out_features" if name == "lm_head" else "num_embeddings") == size
    logits = model(**batch).logits
    assert logits.shape == (3, 7, size)
    torch.testing.assert_close(logits[..., :kept], expected[..., :kept], **CLOSE)
    tensors = {id(parameter) for parameter in model.parameters() if parameter.shape == (size, 16)}
    assert len(tensors) == (1 if tied else 3)
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, logits)


@tied_and_untied
def test_resizing_a_frozen_model_leaves_it_frozen(tied):
    model = small_model(tie_word_embeddings=tied).requires_grad_(False)
    model.resize_token_embeddings(64)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@tied_and_untied
@torch.no_grad()
def test_embeddings_can_be_given_in_place_of_ids(tied):
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    expected = model(**batch).logits
    inputs_embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    decoder_inputs_embeds = model.get_decoder().get_input_embeddings()(batch.pop("decoder_input_ids"))
    given = model(inputs_embeds=inputs_embeds, decoder_inputs_embeds=decoder_inputs_embeds, **batch).logits
    assert torch.equal(given, expected)
    assert torch.equal(model.get_encoder().get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_returned_hidden_states_and_attention_weights_are_those_that_were_used():
    model = small_model(attn_implementation="eager")
    outputs = model(**ragged_batch(), output_hidden_states=True, output_attentions=True)
    names = [name for name in outputs if name.endswith(("hidden_states", "attentions"))]
    assert len(names) == 5
    kept = {f"{name}[{i}]": tensor for name in names for i, tensor in enumerate(outputs[name])}
    for tensor in kept.values():
        tensor.retain_grad()
    outputs.logits.square().sum().backward()
    assert not [name for name, tensor in kept.items() if tensor.grad is None]


@tied_and_untied
@pytest.mark.parametrize("made", ["new", "loaded", "resized", "replaced", "copied"])
def test_each_stack_has_an_embedding_module_of_its_own(tied, made, tmp_path):
    """What is hooked on the source's embedding is not called for the target (attribution methods rely on it)."""
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    if made == "loaded":
        model.save_pretrained(tmp_path)
        model = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    elif made == "resized":
        model.resize_token_embeddings(70)
    elif made == "replaced":
        model.set_input_embeddings(torch.nn.Embedding(61, 16))
        model.tie_weights()
    elif made == "copied":
        model = copy.deepcopy(model)
    names = {"model.encoder.embed_tokens", "model.decoder.embed_tokens"}
    assert names <= {name for name, _ in model.named_modules()}
    assert model.get_input_embeddings() is model.get_encoder().embed_tokens is not model.get_decoder().embed_tokens
    assert (model.get_encoder().embed_tokens.weight is model.get_decoder().embed_tokens.weight) == tied
    called = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, output: called.append(args[0]))
    model(**batch)
    assert len(called) == 1 and called[0] is batch["input_ids"]


def test_tied_embeddings_are_saved_once_and_under_the_name_they_have_always_had(tmp_path):
    small_model().save_pretrained(tmp_path)
    names = {name for name, weight in load_file(tmp_path / "model.safetensors").items() if weight.shape == (61, 16)}
    assert names == {"model.shared.weight"}


def test_a_wrapped_embedding_serves_both_stacks_where_they_are_tied():
    model, batch = small_model(), ragged_batch()
    expected = model(**batch).logits
    model.set_input_embeddings(torch.nn.Sequential(model.get_input_embeddings(), torch.nn.Identity()))
    assert torch.equal(model(**batch).logits, expected)


@tied_and_untied
def test_embeddings_can_be_replaced(tied):
    model, batch = small_model(tie_word_embeddings=tied), ragged_batch()
    new = torch.nn.Embedding(61, 16)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is model.model.encoder.embed_tokens is new
    assert (model.model.decoder.embed_tokens.weight is new.weight) == tied
    assert model.model.encoder.embed_tokens is not model.model.decoder.embed_tokens
    model.tie_weights()
    assert (model.lm_head.weight is new.weight) == tied
    model(**batch, labels=labels_of(batch["decoder_input_ids"])).loss.backward()
    assert new.weight.grad.any()


def test_initialization():
    """Embeddings have variance 1 / d_model, which sqrt(d_model) scales to 1; linear layers are bounded by fan_in."""
    config = small_config(vocab_size=2000, d_model=64, encoder_ffn_dim=128, tie_word_embeddings=False)
    model = VanillaTransformerForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            assert parameter.std().item() == pytest.approx(64**-0.5, rel=0.02), name
            assert abs(parameter.mean()) < 0.002, name
        elif "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif "bias" in name:
            assert (parameter == 0).all(), name
        else:
            bound = parameter.shape[1] ** -0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06), name


def test_no_pad_row_is_special():
    """Marian's `padding_idx` would keep the row at zero and without gradient."""
    model = VanillaTransformerForConditionalGeneration(small_config())
    assert model.get_input_embeddings().padding_idx is None
    assert model.get_input_embeddings().weight[PAD].abs().sum() > 0


# Outputs and arguments


def test_attentions_and_hidden_states_on_request():
    model, batch = small_model("eager"), ragged_batch()
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in outputs.encoder_attentions] == [(3, 2, 9, 9)] * 2
    assert [a.shape for a in outputs.decoder_attentions] == [(3, 4, 7, 7)] * 3
    assert [a.shape for a in outputs.cross_attentions] == [(3, 4, 7, 9)] * 3
    assert [h.shape for h in outputs.encoder_hidden_states] == [(3, 9, 16)] * 3
    assert [h.shape for h in outputs.decoder_hidden_states] == [(3, 7, 16)] * 4
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    assert torch.equal(model.lm_head(outputs.decoder_hidden_states[-1]), outputs.logits)
    for attention in (*outputs.encoder_attentions, *outputs.decoder_attentions, *outputs.cross_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    hidden = batch["attention_mask"] == 0
    for attention in (*outputs.encoder_attentions, *outputs.cross_attentions):
        assert (attention.transpose(1, 3)[hidden] == 0).all()
    for attention in outputs.decoder_attentions:
        assert (attention.triu(1) == 0).all()
    plain = model(**batch)
    assert plain.encoder_attentions is plain.cross_attentions is plain.decoder_hidden_states is None


@torch.no_grad()
def test_return_dict_false_gives_a_tuple():
    model, batch = small_model(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    as_dict, as_tuple = model(**batch, labels=labels), model(**batch, labels=labels, return_dict=False)
    assert isinstance(as_dict, Seq2SeqLMOutput) and isinstance(as_tuple, tuple)
    for ours, expected in zip(as_tuple, as_dict.to_tuple(), strict=True):
        assert torch.equal(ours, expected)
    encoded = model.get_encoder()(batch["input_ids"], batch["attention_mask"], return_dict=False)
    again = model(**batch, encoder_outputs=encoded, labels=labels)
    assert torch.equal(again.logits, as_dict.logits)
    assert isinstance(model.model(**batch, return_dict=False), tuple)


@torch.no_grad()
def test_logits_can_be_kept_for_some_positions_only():
    model, batch = small_model(), ragged_batch()
    logits = model(**batch).logits
    assert torch.equal(model(**batch, logits_to_keep=0).logits, logits)
    for keep, places in ((1, [6]), (3, [4, 5, 6]), (torch.tensor([0, 5]), [0, 5])):
        torch.testing.assert_close(model(**batch, logits_to_keep=keep).logits, logits[:, places], **CLOSE)


WRONG_ARGUMENTS = {
    "no source": (lambda model, ids: model(decoder_input_ids=ids), "input_ids or inputs_embeds"),
    "two sources": (
        lambda model, ids: model(input_ids=ids, inputs_embeds=torch.zeros(1, 3, 16), decoder_input_ids=ids),
        "input_ids or inputs_embeds",
    ),
    "no target": (lambda model, ids: model(input_ids=ids), "decoder_input_ids or decoder_inputs_embeds.*labels"),
    "two targets": (
        lambda model, ids: model(ids, decoder_input_ids=ids, decoder_inputs_embeds=torch.zeros(1, 3, 16)),
        "decoder_input_ids or decoder_inputs_embeds",
    ),
    "no encoder": (lambda model, ids: model.get_decoder()(input_ids=ids), "encoder_hidden_states"),
}


@pytest.mark.parametrize("call, sentence", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call(small_model(), torch.tensor([[5, 6, 7]]))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_copies_and_pickles_work():
    model, batch = small_model(), ragged_batch()
    expected = model(**batch).logits
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(**batch).logits, expected)
        assert copied.lm_head.weight is copied.model.shared.weight is not model.lm_head.weight


# Precision and compilation


@eager_and_sdpa
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_half_precision_is_close_to_single(dtype, tolerance, attn_implementation):
    model, batch = small_model(attn_implementation), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    batch["attention_mask"][1] = 0
    single = model(**batch, labels=labels)
    half = model.to(dtype)(**batch, labels=labels)
    assert half.logits.dtype == dtype and half.loss.dtype == torch.float32
    torch.testing.assert_close(half.logits.float(), single.logits, rtol=0.1, atol=tolerance)
    half.loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@eager_and_sdpa
def test_autocast(attn_implementation):
    model, batch = small_model(attn_implementation).train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    single = model(**batch, labels=labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch, labels=labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, single, rtol=0.05, atol=0.05)
    loss.backward()
    assert all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in gradients(model).values())


@pytest.fixture
def sdpa_dtypes(monkeypatch):
    """The dtypes of the queries of all calls of F.scaled_dot_product_attention."""
    dtypes, sdpa = [], F.scaled_dot_product_attention

    def recording(query, *args, **kwargs):
        dtypes.append(query.dtype)
        return sdpa(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    return dtypes


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_of_a_training_step_in_bfloat16_is_computed_in_float32(sdpa_dtypes, autocast):
    model, batch = small_model("sdpa", attention_dropout=0.0, dropout=0.0).train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    model(**batch, labels=labels).loss.backward()
    expected = torch.cat([gradient.flatten() for gradient in gradients(model).values()])
    model.zero_grad()
    attended = []
    model.model.decoder.layers[0].self_attn.register_forward_hook(
        lambda _, inputs, outputs: attended.append(outputs[0].dtype)
    )
    model = model if autocast else model.bfloat16()
    sdpa_dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**batch, labels=labels).loss.backward()
    assert set(sdpa_dtypes) == {torch.float32} and attended == [torch.bfloat16]
    found = torch.cat([gradient.flatten().float() for gradient in gradients(model).values()])
    assert (found - expected).norm() < 0.4 * expected.norm()


@torch.autocast("cpu", torch.bfloat16)
def test_attention_in_bfloat16_stays_so_without_training_and_in_a_function_of_ones_own(sdpa_dtypes, monkeypatch):
    model, batch = small_model("sdpa"), ragged_batch()
    model(**batch)
    assert set(sdpa_dtypes) == {torch.bfloat16}
    sdpa, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def own(module, query, *args, **kwargs):
        seen.append(query.dtype)
        return sdpa(module, query, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", own)
    model.train()(**batch)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 can't trace transformers' own decorators")
@pytest.mark.parametrize(
    "attn_implementation, backend, masks",
    [
        ("sdpa", "eager", True),
        ("sdpa", "eager", False),
        pytest.param("sdpa", "inductor", True, marks=pytest.mark.slow),
        pytest.param("sdpa", "inductor", False, marks=pytest.mark.slow),
        pytest.param("eager", "inductor", True, marks=pytest.mark.slow),
    ],
)
def test_the_forward_compiles_to_one_graph(attn_implementation, backend, masks):
    torch.compiler.reset()
    model, batch = small_model(attn_implementation, encoder_layers=1, decoder_layers=1), ragged_batch()
    if not masks:
        batch = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    labels = labels_of(batch["decoder_input_ids"])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, **CLOSE)
    model.train()
    model(**batch, labels=labels, smoothing=0.1).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    compiled(**batch, labels=labels, smoothing=0.1).loss.backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], **CLOSE, msg=name)


# What is around the model


def test_forward_mode_differentiation_of_a_training_step():
    model, batch = small_model("eager", dropout=0.1).train(), ragged_batch()
    name = "model.encoder.layers.0.fc1.weight"
    weight = model.get_parameter(name).detach()
    labels = labels_of(batch["decoder_input_ids"])
    for return_logits in (True, False):
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(weight, torch.randn_like(weight))}
            kwargs = batch | {"labels": labels, "return_logits": return_logits}
            loss = torch.func.functional_call(model, dual, (), kwargs).loss
            assert forward_ad.unpack_dual(loss).tangent.isfinite()


def test_dropout_is_drawn_where_the_tensor_is():
    x = torch.ones(8)
    with torch.device("meta"):
        assert kernels.dropout(x, 0.5, True).device == x.device


def test_other_arguments_of_the_attention_are_converted_with_the_rest():
    model, batch = small_model("sdpa").bfloat16().train(), ragged_batch()
    bias = torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16)

    def add_bias(module, args, kwargs):
        return args, kwargs | {"position_bias": bias}

    model.model.encoder.layers[0].self_attn.register_forward_pre_hook(add_bias, with_kwargs=True)
    assert model(**batch).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("return_logits", [True, False])
def test_labels_of_another_shape_or_below_zero_are_refused(return_logits):
    model = small_model().train()
    inputs = {"input_ids": random_ids(2, 5), "decoder_input_ids": random_ids(2, 6), "return_logits": return_logits}
    with pytest.raises(ValueError, match=r"shape \(4, 3\), and the decoder's output has \(2, 6\) positions"):
        model(**inputs, labels=random_ids(4, 3))
    labels = random_ids(2, 6)
    labels[0, 3] = -1
    with pytest.raises((IndexError, RuntimeError)):
        model(**inputs, labels=labels)


@pytest.mark.parametrize(
    "kind",
    [
        list,
        lambda outputs: (*outputs, None, None, "more"),
        lambda outputs: ModelOutput(last_hidden_state=outputs[0]),
        lambda outputs: BaseModelOutputWithPooling(*outputs),
    ],
)
@torch.no_grad()
def test_encoder_outputs_as_a_list_or_a_longer_tuple(kind):
    model, batch = small_model(), ragged_batch()
    expected = model(**batch).logits
    mask = batch["attention_mask"]
    hidden = model.get_encoder()(input_ids=batch.pop("input_ids"), attention_mask=mask).last_hidden_state
    assert torch.equal(model(**batch, encoder_outputs=kind([hidden])).logits, expected)


def test_an_embedding_whose_weight_has_no_shape_yet():
    """So are parameters while DeepSpeed's zero.Init makes a model: each process has a part."""
    embedding = torch.nn.Embedding(7, 4)
    embedding.weight = torch.nn.Parameter(torch.empty(0))
    other = with_weight_of(embedding)
    assert other.weight is embedding.weight and (other.num_embeddings, other.embedding_dim) == (7, 4)


def test_what_a_derived_class_adds_is_initialized(tmp_path, monkeypatch):
    """Loading makes a model of memory that holds anything; what the file lacks is drawn by `_init_weights`."""

    class Derived(VanillaTransformerForConditionalGeneration):
        def __init__(self, config):
            super().__init__(config)
            self.conv, self.norm = torch.nn.Conv1d(16, 16, 3), torch.nn.LayerNorm(16, bias=False)
            self.batch_norm, self.rms = torch.nn.BatchNorm1d(16), torch.nn.RMSNorm(16)
            self.types = torch.nn.Embedding(4, 16, padding_idx=0)
            self.post_init()

    small_model().save_pretrained(tmp_path)
    for made in (Derived(small_config()), Derived.from_pretrained(tmp_path)):
        assert 0 < made.conv.weight.std() < 0.2
        ones = (made.norm.weight, made.rms.weight, made.batch_norm.weight, made.batch_norm.running_var)
        assert all(torch.equal(tensor, torch.ones(16)) for tensor in ones)
        assert not made.batch_norm.running_mean.any() and made.batch_norm.num_batches_tracked == 0
        assert not made.types.weight[0].any() and made.types.weight[1:].all()


@torch.no_grad()
def test_dummy_inputs_can_be_read():
    for vocab_size in (6, 40):
        model = small_model(vocab_size=vocab_size)
        assert model(**model.dummy_inputs).logits.shape == (2, 4, vocab_size)


@eager_and_sdpa
def test_gradients_of_each_sample_by_vmap(attn_implementation):
    """Without a mask: transformers' own code asks a mask for its values, which torch.func refuses."""
    model, batch = small_model(attn_implementation).train(), ragged_batch()
    labels = labels_of(batch.pop("decoder_input_ids"))
    weights = dict(model.named_parameters())

    def loss(weights, ids, labels):
        inputs = {"input_ids": ids[None], "labels": labels[None]}
        return torch.func.functional_call(model, weights, (), inputs, tie_weights=True).loss

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, batch["input_ids"], labels)
    for row in range(len(labels)):
        expected = torch.func.grad(loss)(weights, batch["input_ids"][row], labels[row])
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name][row], gradient, **CLOSE)
