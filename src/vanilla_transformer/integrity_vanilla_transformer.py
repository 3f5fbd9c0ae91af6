"""Check that a model's decoder computes what its code says.

The incremental decoder stands in for `forward`, so it may only be used where it gives the same. Everything that it
relies on is listed here as it is when nobody has modified anything: code, types, methods, hooks, weights, attention
functions, and the state of torch. Whatever is not on these lists, foreseen or not, makes the search call `forward`.
"""

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .kernels_vanilla_transformer import HOOKS, is_transformed

MODEL = "VanillaTransformerForConditionalGeneration"
# The code that the incremental decoder stands in for. When its digest changes: compare the incremental decoder with the
# change, correct it if necessary, then write the new digest here.
DECODING_CODE = (
    "VanillaTransformerForConditionalGeneration.forward",
    "VanillaTransformerModel.forward",
    "VanillaTransformerDecoder.forward",
    "VanillaTransformerStack.positions",
    "VanillaTransformerDecoderLayer.forward",
    "VanillaTransformerAttention.forward",
    "VanillaTransformerAttention.split_heads",
    "VanillaTransformerAttention.keys_and_values",
    "scaled_dot_product_attention",
    "embed",
    "feed_forward",
    "sinusoidal_positions",
    "count_positions",
    "dropout",
)
DECODING_CODE_DIGEST = "a6420e092fd34669"

# The modules of the decoder: what is inside each of our classes, and the weights of each of torch's.
CHILDREN: dict[str, dict[str, str | type[nn.Module]]] = {
    "VanillaTransformerDecoder": {"embed_tokens": nn.Embedding, "layers": nn.ModuleList},
    "VanillaTransformerDecoderLayer": {
        "self_attn": "VanillaTransformerAttention",
        "self_attn_layer_norm": nn.LayerNorm,
        "encoder_attn": "VanillaTransformerAttention",
        "encoder_attn_layer_norm": nn.LayerNorm,
        "activation": nn.Module,
        "fc1": nn.Linear,
        "fc2": nn.Linear,
        "final_layer_norm": nn.LayerNorm,
    },
    "VanillaTransformerAttention": dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), nn.Linear),
}
WEIGHTS = {nn.Linear: {"weight", "bias"}, nn.LayerNorm: {"weight", "bias"}, nn.Embedding: {"weight"}}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEVICES = ("cpu", "cuda", "mps", "xpu")

# Where the decorators of our methods come from.
DECORATORS = (
    "torch.utils._contextlib",
    "transformers.modeling_layers",
    "transformers.utils.generic",
    "transformers.utils.output_capturing",
)
RECORDER = "transformers.utils.output_capturing"
# Methods that a call goes through, and the function that the library has for each.
MODULE_METHODS = {
    "__call__": ("Module._wrapped_call_impl", "GradientCheckpointingLayer.__call__"),
    "_wrapped_call_impl": ("Module._wrapped_call_impl",),
    "_call_impl": ("Module._call_impl",),
    "__getattr__": ("Module.__getattr__",),
}
GENERATION_METHODS = ("prepare_inputs_for_generation", "_prefill", "_update_model_kwargs_for_generation")
ATTENTION = ("eager", "sdpa")  # attention implementations
FUNCTIONALS = (
    "linear",
    "layer_norm",
    "embedding",
    "softmax",
    "dropout",
    "relu",
    "gelu",
    "scaled_dot_product_attention",
)
STANDARD_ATTRIBUTES = frozenset(vars(nn.Module()))


def decodes_as_written(model: PreTrainedModel) -> bool:
    """Check that the decoder and the output layer compute what `DECODING_CODE` says, and nothing else.

    Args:
        model: Any encoder-decoder model.
    """
    if type(model).__name__ != MODEL:
        return False
    base: Any = model._modules.get("model")
    lm_head: Any = model._modules.get("lm_head")
    decoder: Any = base._modules.get("decoder") if base is not None else None
    package = _package(type(model))
    if not (
        _is_class(type(base), "VanillaTransformerModel", package)
        and _is_class(type(lm_head), nn.Linear, package)
        and _is_class(type(decoder), "VanillaTransformerDecoder", package)
    ):
        return False
    inside = list(decoder.modules())
    return (
        all(_has_its_children(module, package) for module in inside)
        and all(_has_its_weights(module) for module in inside)
        and lm_head._parameters.get("bias") is None
        and _weights_are_plain([lm_head, *inside])
        and _layers_are_as_written(decoder)
        and all(_instance_is_as_written(module) for module in (model, base, lm_head, *inside))
        and all(_class_is_as_written(kind, package) for kind in {type(module) for module in (model, base, *inside)})
        and all(_is_library_method(type(model), name, [f"GenerationMixin.{name}"]) for name in GENERATION_METHODS)
        and _decoding_code_is_known(type(model), package)
        and _torch_is_plain(lm_head.weight.device.type)
    )


# Structure and weights


def _is_class(kind: type, expected: str | type, package: str) -> bool:
    """Compare a class with the expected one: a class of torch, or the name of one of ours in this package."""
    if isinstance(expected, str):
        return kind.__qualname__ == expected and _package(kind) == package
    if expected is nn.Module:  # an activation
        return kind.__module__ in ("torch.nn.modules.activation", "transformers.activations")
    return kind is expected


def _has_its_children(module: nn.Module, package: str) -> bool:
    """Check that a module has the submodules that it was made with, each of its class, and no others."""
    if type(module) is nn.ModuleList:
        expected: dict[str, str | type] = dict.fromkeys(module._modules, "VanillaTransformerDecoderLayer")
    else:
        expected = CHILDREN.get(type(module).__name__, {})
    children = module._modules
    return children.keys() == expected.keys() and all(
        _is_class(type(child), expected[name], package) for name, child in children.items()
    )


def _has_its_weights(module: nn.Module) -> bool:
    """Check that a module has the parameters that it was made with, and neither others nor buffers."""
    parameters = {name for name, parameter in module._parameters.items() if parameter is not None}
    return parameters == WEIGHTS.get(type(module), set()) and not module._buffers


def _weights_are_plain(modules: list[nn.Module]) -> bool:
    """Check that all weights are plain parameters of one usual dtype on one usual device."""
    weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
    dtype, device = weights[0].dtype, weights[0].device
    return (
        dtype in DTYPES
        and device.type in DEVICES
        and all(
            type(weight) is nn.Parameter
            and weight.dtype is dtype
            and weight.device == device
            and weight.layout is torch.strided
            for weight in weights
        )
    )


def _layers_are_as_written(decoder: Any) -> bool:
    """Check what each layer's attentions were made with, and that they use our attention function or torch's."""
    for index, layer in enumerate(decoder.layers):
        for attention in (layer.self_attn, layer.encoder_attn):
            if attention.layer_idx != index or attention.scaling != attention.d_head**-0.5:
                return False
            if attention.config._attn_implementation not in ATTENTION:
                return False
    if decoder.config._attn_implementation not in ATTENTION:
        return False
    functions = [
        (ALL_ATTENTION_FUNCTIONS.get("eager"), None),
        (ALL_ATTENTION_FUNCTIONS.get("sdpa"), "transformers.integrations.sdpa_attention.sdpa_attention_forward"),
        (ALL_MASK_ATTENTION_FUNCTIONS.get("eager"), "transformers.masking_utils.eager_mask"),
        (ALL_MASK_ATTENTION_FUNCTIONS.get("sdpa"), "transformers.masking_utils.sdpa_mask"),
    ]
    return all(_full_name(function) == name for function, name in functions)


# Code


def _package(kind: type) -> str:
    """Return the package of a class' module: `a.b` for `a.b.modeling`. The model's files have one in common."""
    return kind.__module__.rpartition(".")[0]


def _full_name(function: Any) -> str | None:
    """Return where a function was written, as `module.name`, whatever it calls itself now; None if it is not one."""
    if isinstance(function, FunctionType):
        return f"{function.__globals__['__name__']}.{function.__code__.co_qualname}"
    return None


def _undecorated(function: Any) -> FunctionType | None:
    """Return the function inside the decorators that our code uses; None if there are others."""
    while isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):
        if function.__globals__["__name__"] not in DECORATORS:
            return None
        function = function.__wrapped__
    return function if isinstance(function, FunctionType) else None


def _is_our_code(function: Any, name: str, package: str) -> bool:
    """Check that a function was written under this name in a file of the package."""
    written = _undecorated(function)
    if written is None or written.__code__.co_qualname != name:
        return False
    module = sys.modules.get(written.__globals__["__name__"])
    return (
        module is not None
        and vars(module) is written.__globals__
        and module.__name__.rpartition(".")[0] == package
        and module.__file__ == written.__code__.co_filename
    )


def _class_is_as_written(kind: type, package: str) -> bool:
    """Check that all methods of our classes are our code, and that those of libraries are the libraries'."""
    for base in kind.__mro__:
        if _package(base) == package:
            if not all(_is_our_code(method, f"{base.__qualname__}.{name}", package) for name, method in _methods(base)):
                return False
        elif base.__module__.partition(".")[0] not in ("torch", "transformers", "builtins"):
            return False
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    forwards = ["_forward_unimplemented", f"{owner.__qualname__}.forward"]  # the first is that of lists of modules
    if _package(owner) != package and not _is_library_method(kind, "forward", forwards):
        return False
    return all(_is_library_method(kind, name, functions) for name, functions in MODULE_METHODS.items())


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Iterate over the functions of a class' own methods and properties."""
    for name, value in vars(kind).items():
        value = getattr(value, "__func__", value)  # of a class method or a static method
        functions = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        yield from ((name, function) for function in functions if callable(function) and not isinstance(function, type))


def _is_library_method(kind: type, name: str, functions: Collection[str]) -> bool:
    """Check that a method is one of these functions of torch or transformers."""
    method = getattr(kind, name, None)
    return (
        isinstance(method, FunctionType)
        and method.__code__.co_qualname in functions
        and method.__globals__["__name__"].partition(".")[0] in ("torch", "transformers")
    )


def _instance_is_as_written(module: nn.Module) -> bool:
    """Check that a module is in eval mode, and has no hooks, compiled form, or attributes in front of its methods."""
    attributes, kind = vars(module), type(module)
    own = attributes.keys() - STANDARD_ATTRIBUTES
    registered = module._modules.keys() | module._parameters.keys()
    return (
        not module.training
        and module._compiled_call_impl is None
        and not any(_is_hooked(attributes[f"_{hooks}"]) for hooks in HOOKS)
        and own.isdisjoint(registered)
        and not any(callable(getattr(kind, name, None)) for name in own)
    )


def _is_hooked(hooks: dict[int, Callable]) -> bool:
    """Tell whether there are hooks, other than those with which transformers records outputs on request."""
    return any((_full_name(hook) or "").partition(".install")[0] != RECORDER for hook in hooks.values())


def _decoding_code_is_known(model_class: type, package: str) -> bool:
    """Check that `DECODING_CODE` is what the incremental decoder was written for, not an edited copy."""
    functions = decoding_code(model_class)
    return (
        all(_is_our_code(function, name, package) for name, function in functions.items())
        and all(_uses_library_code(function, package) for function in functions.values())
        and code_digest(tuple(functions.values())) == DECODING_CODE_DIGEST
    )


def decoding_code(model_class: type) -> dict[str, Any]:
    """Return the functions of `DECODING_CODE` in the module of a model's class, by name; None if there is none."""
    namespace = vars(sys.modules[model_class.__module__])
    functions = {}
    for name in DECODING_CODE:
        owner, _, attribute = name.rpartition(".")
        functions[name] = vars(namespace[owner]).get(attribute) if owner else namespace.get(attribute)
    return functions


def _uses_library_code(function: Any, package: str) -> bool:
    """Check that the global functions that a function of ours uses are our code, or that of torch or transformers."""
    code, namespace = inspect.unwrap(function).__code__, inspect.unwrap(function).__globals__
    for name in code.co_names:
        value = namespace.get(name)
        if isinstance(value, FunctionType) and not _is_our_code(value, name, package):
            if value.__globals__["__name__"].partition(".")[0] not in ("torch", "transformers"):
                return False
    return True


@lru_cache(maxsize=8)
def code_digest(functions: tuple[Callable, ...]) -> str:
    """Compute a digest of the functions' source, which comments, docstrings, annotations and layout do not change.

    Returns:
        16 hexadecimal digits; empty if the source is not available.
    """
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(function))) for function in functions]
    except (OSError, TypeError, SyntaxError):
        return ""
    return hashlib.sha256(repr([_canonical(tree) for tree in trees]).encode()).hexdigest()[:16]


def _canonical(node: Any) -> Any:
    """Turn a syntax tree into nested tuples that do not depend on Python's version."""
    if isinstance(node, list):
        return tuple(map(_canonical, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = fields["body"][1:]
    left_out = ("annotation", "returns", "ctx", "type_comment", "type_params", "kind")
    kept = [
        (name, _canonical(value)) for name, value in fields.items() if name not in left_out and value not in (None, [])
    ]
    return type(node).__name__, tuple(kept)


# The state of torch


def _torch_is_plain(device: str) -> bool:
    """Check that nothing looks at torch's operations or changes them: modes, transforms, tracing, autocast, patches."""
    functions = [getattr(F, name) for name in FUNCTIONALS]
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(device)
        and all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
        and not _get_current_dispatch_mode_stack()
        and not is_transformed()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not any(getattr(global_hooks, f"_global_{hooks}") for hooks in HOOKS)
        and all(
            type(function) is BuiltinFunctionType or _full_name(function) == f"torch.nn.functional.{name}"
            for name, function in zip(FUNCTIONALS, functions, strict=True)
        )
    )
