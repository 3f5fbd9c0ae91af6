"""Faster forms of the paper's sums: attention and dropout on a CPU, and a training loss that never holds all logits.

They cannot be told from the plain forms, but for a loss without second derivatives: inputs are left as they are,
results are equal up to rounding (and the random numbers drawn), and the plain form takes over under `torch.func` and
where somebody has changed a module.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from transformers.integrations.sdpa_attention import sdpa_attention_forward

IGNORED_LABEL = -100
# Logits that the training loss holds at a time: 16 MiB in float32. docs/decisions.md has the measurements.
LOGITS_AT_ONCE = 2**22

# What a module and torch have as `_forward_hooks` and `_global_forward_hooks`, and so on.
HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def is_unmodified(module: nn.Module) -> bool:
    """Check that calling a module runs the `forward` that its class was written with, on plain weights.

    Only what is known to change nothing passes. Hooks, also global ones, patched methods, adapters, parametrizations,
    and quantized, split or offloaded weights fail. Modules inside the module are not looked at.

    Args:
        module: Any module.
    """
    weights = (weight for weight in module._parameters.values() if weight is not None)
    return (
        type(module).__call__ is nn.Module.__call__
        and not vars(module).keys() & {"forward", "__call__"}
        and _is_own_code(type(module))
        and module._compiled_call_impl is None
        and not any(getattr(module, f"_{hooks}") or getattr(module_hooks, f"_global_{hooks}") for hooks in HOOKS)
        and all(type(weight) is nn.Parameter and not weight.is_meta for weight in weights)
    )


def _is_own_code(module_class: Any) -> bool:
    """Check that a class's `forward` was written in the file of the class: a patched one comes from elsewhere."""
    owner = next(base for base in module_class.__mro__ if "forward" in vars(base))
    code = getattr(owner.forward, "__code__", None)
    return code is not None and code.co_filename == getattr(sys.modules.get(owner.__module__), "__file__", None)


def is_transformed() -> bool:
    """Check whether `torch.func` or forward-mode differentiation is at work: they need operations that they know."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# 3.2.1 Scaled dot-product attention


def with_fast_gradients(attend: Callable, query: torch.Tensor, training: bool) -> Callable:
    """Replace SDPA in bfloat16 by SDPA in float32 for training on a CPU.

    There the gradients of torch's kernel take five to seven times as long in bfloat16 as in float32, half of a small
    model's training step.

    Args:
        attend: A function of transformers' attention interface; another one than the stock "sdpa" is left alone.
        query: The queries that it will be called with.
        training: Whether the module that calls it is in training mode.
    """
    is_slow = training and query.dtype == torch.bfloat16 and query.device.type == "cpu" and type(query) is torch.Tensor
    if not is_slow or attend is not sdpa_attention_forward or torch.compiler.is_compiling() or is_transformed():
        return attend
    return sdpa_in_float32


def sdpa_in_float32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Call transformers' "sdpa" in float32, also under autocast, and round its output to the dtype of the queries."""

    def single(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    tensors = map(single, (query, key, value, attention_mask))
    with torch.autocast("cpu", enabled=False):
        heads, _ = sdpa_attention_forward(module, *tensors, **{name: single(kwargs[name]) for name in kwargs})
    return heads.to(query.dtype), None


# 5.4 Regularization: dropout


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Set each element to zero with probability p and divide the others by 1 - p (section 5.4).

    A CPU draws random numbers on one core, whatever the number of threads, and torch's dropout takes 64 bits for each
    element. Here 16 bits decide, with p rounded to 1/65536: a training step takes a tenth less time.

    Args:
        x: Any shape.
        p: Probability, at least 0 and below 1.
        training: Whether to drop anything.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or type(x) is not torch.Tensor or torch.compiler.is_compiling() or is_transformed():
        return F.dropout(x, p)
    return CPUDropout.apply(x, p)


class CPUDropout(torch.autograd.Function):
    """Dropout with four 16-bit random numbers from each 64-bit one. Only the mask is saved, a byte for an element."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        """Drop elements of `x`; the result is a new tensor."""
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        # Four numbers from -2^15 to 2^15 - 1 in each word; with p = 0.1 those from -26,214 on are kept.
        kept = words.view(torch.int16)[: x.numel()] >= round(p * 2**16) - 2**15
        kept = kept.view(torch.uint8).view(x.shape)  # a CPU multiplies by integers three times as fast as by booleans
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return torch.mul(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Pass on the gradient of the elements that were kept; this can be differentiated again."""
        (kept,) = ctx.saved_tensors
        return grad * kept * ctx.scale, None


# 5.4 Regularization: the training loss


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `cross_entropy(hidden_states @ weight.T, ...)` and its gradients without the logits of a whole batch.

    Args:
        hidden_states: The decoder's output, [batch, length, d_model].
        weight: The output layer's matrix, [vocab_size, d_model].
        labels: As in `cross_entropy`, like the rest.
        smoothing: As in `cross_entropy`.
        num_items_in_batch: As in `cross_entropy`.

    Returns:
        A float32 scalar, in nats per label; 0 where all labels are ignored.
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    labels = labels.to(hidden_states.device)
    check_labels(labels, hidden_states)
    divisor = number_of_labels(labels, num_items_in_batch)
    if torch.compiler.is_compiling():  # where shapes must not depend on values
        hidden_states, labels = hidden_states.flatten(0, 1), labels.flatten()
    else:
        is_label = labels != IGNORED_LABEL
        hidden_states, labels = hidden_states[is_label], labels[is_label]
    return LinearCrossEntropy.apply(hidden_states, weight, labels, smoothing) / divisor


def check_labels(labels: torch.Tensor, states: torch.Tensor) -> None:
    """Raise ValueError unless there is a label for each position of the states, [batch, length, any size]."""
    if labels.shape != states.shape[:2]:
        raise ValueError(
            f"The labels have the shape {tuple(labels.shape)}, and the decoder's output has {tuple(states.shape[:2])} "
            "positions: give one label for each."
        )


def number_of_labels(labels: torch.Tensor, num_items_in_batch: int | torch.Tensor | None) -> int | torch.Tensor:
    """Give the divisor of a loss: `num_items_in_batch` if there is one, else how many labels are not ignored.

    Args:
        labels: [batch, length], int64; -100 where ignored.
        num_items_in_batch: The number of labels in all accumulated batches, or None.
    """
    if num_items_in_batch is None:
        return (labels != IGNORED_LABEL).sum().clamp(min=1)
    return num_items_in_batch.to(labels.device) if isinstance(num_items_in_batch, torch.Tensor) else num_items_in_batch


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of `linear_cross_entropy`, over as many rows at a time as make `LOGITS_AT_ONCE` logits.

    The gradient of the logits is softmax(logits) - target distribution. It is known as soon as the loss is, so its
    products are computed in the forward pass, reusing the logits' buffer: no logits are kept or computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        """Sum up the loss of [rows, d_model] hidden states, [vocab_size, d_model] weights and [rows] labels."""
        vocab_size = weight.shape[0]
        sum_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        total = torch.zeros((), dtype=sum_dtype, device=hidden_states.device)
        grad_hidden_states = torch.empty_like(hidden_states) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype) if ctx.needs_input_grad[1] else None
        weight_mean = weight.mean(dim=0, dtype=sum_dtype)  # [d_model]; its product with a hidden state: the mean logit

        rows_at_once = max(1, LOGITS_AT_ONCE // vocab_size)
        for start in range(0, hidden_states.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            is_label = (labels[rows] != IGNORED_LABEL)[:, None]  # [rows, 1]
            label = labels[rows, None].masked_fill(~is_label, 0)  # [rows, 1]
            hidden = hidden_states[rows] * is_label

            logits = (hidden @ weight.t()).to(sum_dtype)  # [rows, vocab_size]
            label_logits = (1 - smoothing) * logits.gather(1, label)  # [rows, 1]
            if smoothing:
                label_logits += smoothing * (hidden.to(sum_dtype) @ weight_mean)[:, None]
            maximum = logits.amax(dim=1, keepdim=True)
            # Step by step and in place: on a CPU the whole loss takes 5 to 11% less than with F.log_softmax.
            exponentials = logits.sub_(maximum).exp_()
            divisors = exponentials.sum(dim=1, keepdim=True)
            total += ((maximum + divisors.log() - label_logits) * is_label).sum()

            grad_logits = exponentials.div_(divisors)
            if smoothing:
                grad_logits -= smoothing / vocab_size
            grad_logits.scatter_add_(1, label, torch.full_like(label_logits, smoothing - 1))
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden_states is not None:
                grad_hidden_states[rows] = grad_logits @ weight * is_label
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ hidden

        ctx.save_for_backward(grad_hidden_states, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` computed.

        Raises:
            RuntimeError: The gradient is to be differentiated again, for which the logits would be needed.
        """
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "this loss has first derivatives only; for second ones, call the model with return_logits=True"
            )
        grads = ((saved * grad).to(saved.dtype) if saved is not None else None for saved in ctx.saved_tensors)
        return (*grads, None, None)
