"""The model: masks, positions, loss, embeddings, outputs, precision and compilation."""

import copy
import math
import pickle

import pytest
import torch
from helpers import PAD, SIZES, gradients, labels_of, padded, ragged_batch, random_ids, small_config, small_model
from safetensors.torch import load_file
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import set_seed
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils.generic import find_labels

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer import kernels_vanilla_transformer as kernels
from vanilla_transformer.base_vanilla_transformer import with_weight_of
from vanilla_transformer.modeling_vanilla_transformer import shift_right, sinusoidal_positions

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
eager_and_sdpa = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(params=["eager", "sdpa", "flex_attention"])
def attention(request):
    """Name of an attention implementation; flex runs without its compiler, which takes a minute on a CPU."""
    with torch.compiler.set_stance("force_eager" if request.param == "flex_attention" else "default"):
        yield request.param


# Attention and masks


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
@torch.no_grad()
def test_no_target_position_sees_the_future(attention, masks):
    model, batch = small_model(attention), ragged_batch()
    if not masks:
        batch = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    logits = model(**batch).logits
    for position in range(1, 7):
        changed = batch["decoder_input_ids"].clone()
        changed[:, position:] = random_ids(3, 7 - position)
        now = model(**(batch | {"decoder_input_ids": changed})).logits
        torch.testing.assert_close(now[:, :position], logits[:, :position], **CLOSE)
        assert not torch.allclose(now[0, position:], logits[0, position:], **CLOSE)


@pytest.mark.parametrize("masks", [True, False], ids=["mask", "no mask"])
@torch.no_grad()
def test_the_encoder_sees_both_ways(attention, masks):
    """SDPA's default is causal: without `is_causal` on the module an encoder without padding silently turns causal."""
    encoder, ids = small_model(attention).get_encoder(), random_ids(2, 6)
    mask = torch.ones_like(ids) if masks else None
    before = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    ids[:, -1] = (ids[:, -1] + 1) % SIZES["vocab_size"]
    after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert not torch.isclose(before[:, 0], after[:, 0], **CLOSE).all(-1).any()


@torch.no_grad()
def test_every_target_position_sees_the_whole_source(attention):
    model, batch = small_model(attention), ragged_batch()
    batch = {name: batch[name][:1] for name in ("input_ids", "decoder_input_ids")}
    before = model(**batch).logits
    for position in range(9):
        changed = batch["input_ids"].clone()
        changed[:, position] = (changed[:, position] + 1) % SIZES["vocab_size"]
        after = model(input_ids=changed, decoder_input_ids=batch["decoder_input_ids"]).logits
        assert not torch.isclose(before, after, **CLOSE).all(-1).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 5])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(attention, side, extra):
    """Left padding shifts absolute positions, unless they follow the mask."""
    model = small_model(attention)
    sources, targets = [random_ids(n) for n in (9, 6, 2)], [random_ids(n) for n in (7, 4, 1)]
    input_ids, attention_mask = padded(sources, 9 + extra, side)
    decoder_input_ids, decoder_attention_mask = padded(targets, 7 + extra, side)
    together = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
    ).logits
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model(input_ids=source[None], decoder_input_ids=target[None]).logits[0]
        torch.testing.assert_close(together[row][decoder_attention_mask[row].bool()], alone, **CLOSE)


@torch.no_grad()
def test_what_is_in_the_padding_changes_nothing(attention):
    model, batch = small_model(attention), ragged_batch()
    before = model(**batch).logits
    kept = batch["decoder_attention_mask"].bool()
    for name in ("input_ids", "decoder_input_ids"):
        batch[name] = torch.where(batch[name] == PAD, random_ids(*batch[name].shape), batch[name])
    torch.testing.assert_close(model(**batch).logits[kept], before[kept], **CLOSE)


@torch.no_grad()
def test_an_all_masked_row_is_finite_and_poisons_no_other(attention):
    """A softmax over nothing is NaN, which a later product or mean spreads to the whole batch."""
    model, batch = small_model(attention), ragged_batch()
    before = model(**batch).logits
    batch["attention_mask"][1] = 0
    after = model(**batch).logits
    assert after.isfinite().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], **CLOSE)
    batch["decoder_attention_mask"][1] = 0
    after = model(**batch).logits
    assert after.isfinite().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], **CLOSE)


@eager_and_sdpa
def test_an_all_masked_row_gives_finite_gradients(attn_implementation):
    model, batch = small_model(attn_implementation).train(), ragged_batch()
    batch["attention_mask"][1] = 0
    model(**batch, labels=labels_of(batch["decoder_input_ids"])).loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@torch.no_grad()
def test_the_attention_implementation_can_be_changed():
    model, batch = small_model("eager"), ragged_batch()
    kept = batch["decoder_attention_mask"].bool()
    expected = model(**batch).logits[kept]
    with torch.compiler.set_stance("force_eager"):
        for attn_implementation in ("sdpa", "flex_attention", "eager"):
            model.set_attn_implementation(attn_implementation)
            assert model.model.decoder.layers[0].encoder_attn.config._attn_implementation == attn_implementation
            torch.testing.assert_close(model(**batch).logits[kept], expected, **CLOSE)


# Positions


@pytest.mark.parametrize("d_model", [2, 16, 512])
def test_positions_are_the_equations(d_model):
    """Interleaved sines and cosines (section 3.5), to what float32 angles allow at position 5,000."""
    positions = torch.arange(5000)
    angles = positions[:, None].double() / 10_000 ** (torch.arange(0, d_model, 2).double() / d_model)
    ours = sinusoidal_positions(positions, d_model)
    assert ours.dtype == torch.float32
    for part, expected in ((ours[:, 0::2], angles.sin()), (ours[:, 1::2], angles.cos())):
        torch.testing.assert_close(part[:500].double(), expected[:500], rtol=0, atol=5e-5)
        torch.testing.assert_close(part.double(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("d_model", [4, 16, 512])
def test_fairseq_positions_are_fairseqs_table(d_model):
    """Its formula, sines before cosines: log(10000) / (half - 1) between the exponents, the first position 2."""
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(2, 1000, dtype=torch.float)[:, None] * frequencies
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    model = small_model(d_model=d_model, position_convention="fairseq", **sizes)
    states = first_states(model, 998)
    assert torch.equal(states[:, 0::2], angles.sin()) and torch.equal(states[:, 1::2], angles.cos())


def first_states(model: VanillaTransformerForConditionalGeneration, length: int, **kwargs) -> torch.Tensor:
    """What enters the first encoder layer for embeddings of zero: the positions, [length, d_model]."""
    inputs_embeds = torch.zeros(1, length, model.config.d_model, dtype=model.dtype)
    with torch.no_grad():
        outputs = model.get_encoder()(inputs_embeds=inputs_embeds, output_hidden_states=True, **kwargs)
    assert outputs.last_hidden_state.isfinite().all()
    return outputs.hidden_states[0][0]


def test_there_is_no_longest_sentence():
    model = small_model(encoder_layers=1)
    assert torch.equal(first_states(model, 5000), sinusoidal_positions(torch.arange(5000), model.config.d_model))


def test_left_padding_shifts_no_position():
    model = small_model()
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    expected = sinusoidal_positions(torch.arange(4), model.config.d_model)
    assert torch.equal(first_states(model, 7, attention_mask=mask)[3:], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_rounded_once_in_half_precision(dtype):
    """Angles computed in bfloat16 know no position above 256 apart."""
    model = small_model(dtype=dtype, encoder_layers=1)
    positions = sinusoidal_positions(torch.arange(2000), model.config.d_model)
    assert torch.equal(first_states(model, 2000), positions.to(dtype))
    ids = random_ids(1, 2000)
    states = model.get_encoder()(input_ids=ids, output_hidden_states=True).hidden_states[0]
    embedded = model.get_input_embeddings()(ids).float() * 4  # the root of d_model
    assert torch.equal(states, (embedded + positions).to(dtype))


def test_nothing_of_the_positions_is_saved(tmp_path):
    model = small_model()
    assert not list(model.buffers())
    assert not [name for name in model.state_dict() if "pos" in name]


def test_positions_are_right_after_meta_construction_and_loading(tmp_path):
    """Buffers that are not saved hold garbage after from_pretrained, or stay on the meta device."""
    model, batch = small_model(), ragged_batch()
    expected = model(**batch).logits
    with torch.device("meta"):
        empty = VanillaTransformerForConditionalGeneration(small_config())
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty.eval()(**batch).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, expected)
    assert torch.equal(first_states(loaded, 50), sinusoidal_positions(torch.arange(50), model.config.d_model))


@pytest.mark.parametrize("scaled", [True, False])
def test_embeddings_are_scaled_by_the_root_of_d_model(scaled):
    model, ids = small_model(scale_embedding=scaled), random_ids(1, 5)
    states = model.get_encoder()(input_ids=ids, output_hidden_states=True).hidden_states[0][0]
    embedded = (states - sinusoidal_positions(torch.arange(5), 16)) / (4 if scaled else 1)
    torch.testing.assert_close(embedded, model.get_input_embeddings()(ids)[0], **CLOSE)


# Loss


def test_shift_right():
    labels = torch.tensor([[5, 6, 2], [7, 2, -100], [-100, -100, -100]])
    expected = torch.tensor([[0, 5, 6], [0, 7, 2], [0, 1, 1]])
    assert torch.equal(shift_right(labels, pad_token_id=1, decoder_start_token_id=0), expected)
    assert (labels == -100).sum() == 4, "the labels must stay as they are"
    model = small_model(decoder_start_token_id=3, pad_token_id=9)
    assert model.prepare_decoder_input_ids_from_labels(labels=labels).tolist() == [[3, 5, 6], [3, 7, 2], [3, 9, 9]]


def test_the_loss_is_the_mean_over_labels_and_is_not_shifted_twice():
    """The loss that transformers has for "ForConditionalGeneration" is the causal one, which shifts once more."""
    model, batch = small_model(), ragged_batch()
    labels = labels_of(batch.pop("decoder_input_ids"))
    outputs = model(**batch, labels=labels)
    expected = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(outputs.loss, expected)
    given = model(**batch, labels=labels, decoder_input_ids=shift_right(labels, 1, 0))
    assert torch.equal(given.logits, outputs.logits) and torch.equal(given.loss, outputs.loss)
    other = model(**batch, labels=labels, decoder_input_ids=random_ids(*labels.shape))
    assert not torch.allclose(other.loss, outputs.loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_smoothing_is_that_of_transformers(smoothing):
    model, batch = small_model(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    outputs = model(**batch, labels=labels, smoothing=smoothing)
    torch.testing.assert_close(outputs.loss, LabelSmoother(epsilon=smoothing)(outputs, labels))


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_the_loss_is_divided_by_the_number_of_items(kind):
    model, batch = small_model(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    mean, divided = (model(**batch, labels=labels, num_items_in_batch=items).loss for items in (None, kind(48)))
    torch.testing.assert_close(divided, mean * (labels != -100).sum() / 48)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_accumulated_batches_have_the_gradients_of_one_batch(kind, smoothing):
    """Bart, Marian and T5 ignore num_items_in_batch: 4 batches of 4 give them 4 times the gradients of 1 of 16."""
    model = small_model(dtype=torch.float64).train()
    input_ids, attention_mask = padded([random_ids(n % 7 + 1) for n in range(16)], 7)
    labels = labels_of(padded([random_ids(n % 9 + 1) for n in range(16)], 9)[0])
    items = kind(int((labels != -100).sum()))

    def accumulated(size: int) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for i in range(0, 16, size):
            rows = slice(i, i + size)
            loss = model(
                input_ids=input_ids[rows],
                attention_mask=attention_mask[rows],
                labels=labels[rows],
                num_items_in_batch=items,
                smoothing=smoothing,
            ).loss
            loss.backward()
            total += loss.item()
        return total, gradients(model)

    (one_loss, one), (four_loss, four) = accumulated(16), accumulated(4)
    assert four_loss == pytest.approx(one_loss, rel=1e-5)
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_no_label_is_zero(smoothing):
    model, batch = small_model().train(), ragged_batch()
    loss = model(**batch, labels=torch.full((3, 7), -100), smoothing=smoothing).loss
    loss.backward()
    assert loss == 0
    assert all((grad == 0).all() for grad in gradients(model).values())


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(1_000_003,), (100, 10, 1_000)])
def test_dropout_sets_a_share_of_p_to_zero_and_scales_the_rest_gradients_too(p, shape):
    x = torch.ones(shape, requires_grad=True)
    y = kernels.dropout(x, p, training=True)
    assert (x == 1).all()
    zeros = y == 0
    assert abs(zeros.float().mean().item() - p) < 0.003  # six standard deviations
    torch.testing.assert_close(y[~zeros].unique(), torch.tensor([1 / (1 - p)]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    # Neighbours, which come from one random number, are independent.
    dropped = zeros.flatten()[: shape[0] // 4 * 4].view(-1, 4).float()
    if len(dropped) > 1_000:
        correlation = torch.corrcoef(dropped.T) - torch.eye(4)
        assert correlation.abs().max() < 0.015
    assert not torch.equal(y, kernels.dropout(x, p, training=True))


def test_dropout_in_every_place_has_gradients():
    model, batch = small_model(dropout=0.1, attention_dropout=0.1, activation_dropout=0.1).train(), ragged_batch()
    model(**batch, labels=labels_of(batch["decoder_input_ids"])).loss.backward()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(model).values())


def test_dropout_is_none_in_evaluation_and_torchs_own_when_compiled():
    x = torch.ones(1_000)
    assert kernels.dropout(x, 0.5, training=False) is x and kernels.dropout(x, 0.0, training=True) is x
    compiled = torch.compile(kernels.dropout, fullgraph=True, backend="eager")
    assert 300 < (compiled(x, 0.5, training=True) == 0).sum() < 700


@pytest.mark.parametrize("items", [None, 48, torch.tensor(48)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_the_training_loss_in_chunks_has_the_gradients_of_cross_entropy(monkeypatch, tied, smoothing, items):
    """Chunks of 4 of the 12 labels: the whole ones, the loop, and the rows that are left out."""
    monkeypatch.setattr(kernels, "LOGITS_AT_ONCE", 5 * 61)
    model, batch = small_model(tie_word_embeddings=tied).train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    results = []
    for return_logits in (True, False):
        model.zero_grad()
        outputs = model(
            **batch, labels=labels, smoothing=smoothing, num_items_in_batch=items, return_logits=return_logits
        )
        assert (outputs.logits is not None) == return_logits
        (3 * outputs.loss).backward()
        results.append((outputs.loss, gradients(model)))
    (loss, expected), (chunked_loss, chunked) = results
    torch.testing.assert_close(chunked_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_training_loss_under_autocast(monkeypatch):
    monkeypatch.setattr(kernels, "LOGITS_AT_ONCE", 5 * 61)
    model, batch = small_model().train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    results = []
    for return_logits in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch, labels=labels, smoothing=0.1, return_logits=return_logits).loss
        loss.backward()
        results.append((loss, gradients(model)))
    (loss, expected), (chunked_loss, chunked) = results
    torch.testing.assert_close(chunked_loss, loss, rtol=1e-2, atol=1e-2)
    for name, gradient in expected.items():
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is rounding
            assert (chunked[name] - gradient).norm() < 0.03 * gradient.norm(), name


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest result of an operation has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_training_never_holds_the_logits_of_the_whole_batch(monkeypatch):
    vocab_size, rows = 5_000, 24
    monkeypatch.setattr(kernels, "LOGITS_AT_ONCE", 4 * vocab_size)
    model = small_model(vocab_size=vocab_size, d_model=4, encoder_attention_heads=2).train()
    labels = random_ids(2, rows // 2)
    sizes = {}
    for return_logits in (True, False):
        with LargestTensor() as largest:
            model(input_ids=labels, labels=labels, smoothing=0.1, return_logits=return_logits).loss.backward()
        sizes[return_logits] = largest.elements
    assert sizes == {True: rows * vocab_size, False: 4 * vocab_size}


def test_an_output_layer_that_is_more_than_a_matrix_is_called():
    """An adapter on lm_head, say: its product must not be taken from `lm_head.weight` alone."""
    model, batch = small_model(tie_word_embeddings=False).train(), ragged_batch()
    labels = labels_of(batch["decoder_input_ids"])
    model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Tanh())
    expected = F.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
    for return_logits in (True, False):
        torch.testing.assert_close(model(**batch, labels=labels, return_logits=return_logits).loss, expected)


def test_logits_are_left_out_for_a_loss_only():
    with pytest.raises(ValueError, match="return_logits is False, but without labels"):
        small_model()(**ragged_batch(), return_logits=False)


def test_the_trainer_finds_one_label():
    """A parameter with "label" in its name would count as a label, which every batch then has to have."""
    assert find_labels(VanillaTransformerForConditionalGeneration) == ["labels"]


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


@pytest.mark.parametrize("kind", [list, lambda outputs: (*outputs, None, None, "more")])
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
