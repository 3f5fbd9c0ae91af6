"""The training loss and dropout."""

import pytest
import torch
from helpers import gradients, labels_of, padded, ragged_batch, random_ids, small_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils.generic import find_labels

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer import kernels_vanilla_transformer as kernels
from vanilla_transformer.modeling_vanilla_transformer import shift_right


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
