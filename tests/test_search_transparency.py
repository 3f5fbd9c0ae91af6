"""The paper's search on a model that somebody has modified: it obeys, as `generate()` does on the same model.

Without a length penalty, both searches give the same.
"""

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import small_model
from searches import inputs, library, paper, sharp_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vanilla_transformer
from vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer import modeling_vanilla_transformer as modeling
from vanilla_transformer.integrity_vanilla_transformer import (
    DECODING_CODE_DIGEST,
    code_digest,
    decodes_as_written,
    decoding_code,
)


@pytest.fixture
def model() -> VanillaTransformerForConditionalGeneration:
    return sharp_model()


@torch.no_grad()
def is_as_written(model) -> bool:
    return decodes_as_written(model)


def test_the_fast_decoder_is_used_for_our_models(tmp_path):
    for overrides in ({}, {"activation_function": "gelu"}, {"position_convention": "fairseq"}):
        assert is_as_written(small_model(**overrides))
        assert is_as_written(small_model(tie_word_embeddings=False, **overrides))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert is_as_written(small_model(dtype=dtype))
    assert is_as_written(small_model("eager"))
    small_model().save_pretrained(tmp_path)
    assert is_as_written(VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path))


def test_the_decoding_code_is_what_the_fast_decoder_was_written_for():
    digest = code_digest(tuple(decoding_code(VanillaTransformerForConditionalGeneration).values()))
    assert digest == DECODING_CODE_DIGEST, (
        f"the model's decoding code has changed, and its digest is {digest}: compare IncrementalDecoder with it, "
        "correct that if necessary, and write the digest into integrity_vanilla_transformer.py"
    )


def test_recorded_outputs_leave_no_trace(model):
    """transformers records hidden states through hooks that it never removes."""
    expected = paper(model)
    batch = inputs()
    model(**batch, decoder_input_ids=batch["input_ids"], output_hidden_states=True, output_attentions=True)
    assert model.model.decoder.layers[0]._forward_hooks
    assert is_as_written(model)
    assert paper(model) == expected


# Modifications of one model. Each has an effect, so a search that overlooks it gives something else.


def double(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output * 2


def forbid(model) -> None:
    """Forbid the tokens that the model writes."""
    written = {token for row in paper(model) for token in row}

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor(sorted(written)), -torch.inf)

    model.lm_head.register_forward_hook(hook)


def forbid_in_outputs(model) -> None:
    def hook(module, args, output):
        output.logits = -output.logits
        return output

    model.register_forward_hook(hook)


def replace_by_sequential(model) -> None:
    layer = model.model.decoder.layers[0]
    layer.fc2 = nn.Sequential(layer.fc2, nn.Tanh())


def replace_by_subclass(model) -> None:
    class Negated(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    model.model.decoder.layers[1].self_attn.q_proj = Negated(16, 16)


def patch_instance(model) -> None:
    layer = model.model.decoder.layers[1]
    layer.forward = lambda x, *args, **kwargs: -type(layer).forward(layer, x, *args, **kwargs)


def patch_helper(model) -> None:
    attention = model.model.decoder.layers[0].self_attn
    attention.split_heads = lambda states: type(attention).split_heads(attention, states * 3)


def patch_inputs(model) -> None:
    original = model.prepare_inputs_for_generation

    def changed(*args, **kwargs):
        prepared = original(*args, **kwargs)
        prepared["decoder_input_ids"] = prepared["decoder_input_ids"].clamp(max=5)
        return prepared

    model.prepare_inputs_for_generation = changed


def parametrize(model) -> None:
    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", nn.Tanh())


def norm_weights(model) -> None:
    parametrizations.spectral_norm(model.model.decoder.layers[0].fc1)


def norm_weights_by_hook(model) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model.model.decoder.layers[0].fc1)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight_g.mul_(3)


class HalvedWeight(torch.Tensor):
    """Stands for a quantized weight: every operation sees half of it, and most are not implemented."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.cat:
            raise NotImplementedError("aten.cat")
        plain = [
            arg.as_subclass(torch.Tensor) / 2 if isinstance(arg, cls) and func is F.linear else arg for arg in args
        ]
        if func is F.linear:
            return func(*plain, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def quantize(model) -> None:
    for layer in model.model.decoder.layers:
        projection = layer.self_attn.v_proj
        projection.weight = nn.Parameter(projection.weight.detach().as_subclass(HalvedWeight), requires_grad=False)


def change_scaling(model) -> None:
    model.model.decoder.layers[0].encoder_attn.scaling = 3.0


def share_a_layer(model) -> None:
    model.model.decoder.layers[2] = model.model.decoder.layers[0]


def train_a_norm(model) -> None:
    model.model.decoder.layers[0].final_layer_norm.train()


def compile_call(model) -> None:
    layer = model.model.decoder.layers[0]
    layer._compiled_call_impl = lambda *args, **kwargs: -layer._call_impl(*args, **kwargs)


def remove_biases(model) -> None:
    model.model.decoder.layers[0].self_attn.k_proj = nn.Linear(16, 16, bias=False)
    model.model.decoder.layers[0].final_layer_norm = nn.LayerNorm(16, elementwise_affine=False)


def add_bias(model) -> None:
    model.lm_head = nn.Linear(16, 61)
    with torch.no_grad():
        model.lm_head.bias.mul_(20)


MODIFICATIONS: dict[str, Callable] = {
    "hook on lm_head": forbid,
    "hook on the model": forbid_in_outputs,
    "hook on the base model": lambda m: m.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"decoder_input_ids": kwargs["decoder_input_ids"] * 0 + 7}),
        with_kwargs=True,
    ),
    "hook on a linear layer": lambda m: m.model.decoder.layers[1].fc1.register_forward_hook(double),
    "hook on the embedding": lambda m: m.model.decoder.embed_tokens.register_forward_hook(double),
    "pre-hook": lambda m: m.model.decoder.layers[0].fc2.register_forward_pre_hook(lambda module, args: (-args[0],)),
    "pruning": lambda m: prune.random_unstructured(m.model.decoder.layers[0].fc2, "weight", amount=0.9),
    "sequence in place of a layer": replace_by_sequential,
    "subclass in place of a layer": replace_by_subclass,
    "method of an instance": patch_instance,
    "helper of an instance": patch_helper,
    "inputs of an instance": patch_inputs,
    "parametrization": parametrize,
    "spectral norm": norm_weights,
    "weight norm by hook": norm_weights_by_hook,
    "quantized weights": quantize,
    "scaling": change_scaling,
    "shared layer": share_a_layer,
    "compiled": compile_call,
    "no biases": remove_biases,
    "bias of lm_head": add_bias,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("modify", MODIFICATIONS.values(), ids=MODIFICATIONS)
def test_a_modified_model_is_obeyed(modify, model, monkeypatch):
    plain = paper(model)
    assert is_as_written(model) and plain == library(model)
    modify(model)
    assert not is_as_written(model)
    found = paper(model)
    assert found == library(model)
    assert found != plain, "the modification should have an effect"


def test_dropout_in_one_layer_goes_through_forward(model):
    model.model.decoder.layers[0].train()
    assert not is_as_written(model)


# Modifications of code


def test_patched_classes_and_functions_are_obeyed(monkeypatch):
    Layer, Attention = modeling.VanillaTransformerDecoderLayer, modeling.VanillaTransformerAttention
    patched = functools.wraps(Layer.forward)(lambda self, x, *args, **kwargs: Layer_forward(self, -x, *args, **kwargs))
    Layer_forward = Layer.forward
    linear_forward, linear = nn.Linear.forward, F.linear
    patches = [
        (Layer, "forward", patched),
        (Attention, "split_heads", lambda self, x: (2 * x).view(*x.shape[:-1], -1, self.d_head).transpose(1, 2)),
        (Layer, "__call__", lambda self, x, *args, **kwargs: nn.Module.__call__(self, -x, *args, **kwargs)),
        (modeling, "feed_forward", lambda layer, x: layer.fc2(layer.fc1(x))),
        (modeling, "sinusoidal_positions", lambda ids, d_model, convention: torch.ones(*ids.shape, d_model)),
        (nn.Linear, "forward", lambda self, x: 2 * linear_forward(self, x)),
        (F, "linear", lambda *args: 2 * linear(*args)),
    ]
    model = sharp_model()
    plain = paper(model)
    for owner, name, value in patches:
        with monkeypatch.context() as context:
            context.setattr(owner, name, value, raising=False)
            assert not is_as_written(model), name
            found = paper(model)
            assert found == library(model) != plain, name
    assert is_as_written(model)


def test_a_patched_attention_function_is_obeyed(model, monkeypatch):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def changed(module, query, *args, **kwargs):
        return sdpa(module, -query, *args, **kwargs)

    model.set_attn_implementation("sdpa")
    plain = paper(model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", changed)
    assert not is_as_written(model)
    assert paper(model) == library(model) != plain


def test_subclasses_are_obeyed():
    class Forward(VanillaTransformerForConditionalGeneration):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = -outputs.logits
            return outputs

    class Inputs(VanillaTransformerForConditionalGeneration):
        def prepare_inputs_for_generation(self, *args, **kwargs):
            prepared = super().prepare_inputs_for_generation(*args, **kwargs)
            return prepared | {"decoder_input_ids": prepared["decoder_input_ids"].clamp(max=5)}

    plain = paper(sharp_model())
    for model_class in (Forward, Inputs):
        model = sharp_model(model_class)
        assert not is_as_written(model)
        assert paper(model) == library(model) != plain


def edited_modeling(folder: Path, edit: Callable[[str], str]):
    """Import a copy of the package's model files with an edited modeling file, as remote code is a copy."""
    name = f"{folder.name}_copy"
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    for path in Path(vanilla_transformer.__file__).parent.glob("*_vanilla_transformer.py"):
        (package / path.name).write_text(
            edit(path.read_text()) if path.name.startswith("modeling") else path.read_text()
        )
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{name}.modeling_vanilla_transformer")
    finally:
        sys.path.remove(str(folder))


def test_a_copy_of_the_code_is_as_written_and_an_edited_one_is_obeyed(tmp_path):
    for name in ("same", "comment", "edited"):
        (tmp_path / name).mkdir()
    same = edited_modeling(tmp_path / "same", lambda text: text)
    comment = edited_modeling(tmp_path / "comment", lambda text: text.replace("# 3.2 Attention", "# Section 3.2"))
    line = "return layer.fc2("
    edited = edited_modeling(tmp_path / "edited", lambda text: text.replace(line, "return -layer.fc2("))
    plain = paper(sharp_model())
    for module, as_written in ((same, True), (comment, True), (edited, False)):
        model = sharp_model(module.VanillaTransformerForConditionalGeneration)
        assert type(model) is not VanillaTransformerForConditionalGeneration
        assert is_as_written(model) == as_written
        assert paper(model) == library(model)
        assert (paper(model) == plain) == as_written


# The state of torch


@contextlib.contextmanager
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: -output if type(module) is nn.LayerNorm else None
    )
    try:
        yield
    finally:
        handle.remove()


class Negate(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return -result if func is F.layer_norm else result


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "context",
    [global_hook, Negate, Count, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad],
    ids=["global hook", "function mode", "dispatch mode", "autocast", "gradients"],
)
def test_what_torch_is_told_is_obeyed(model, context):
    with torch.no_grad(), context():
        assert not decodes_as_written(model)
        assert paper(model) == library(model)
    assert is_as_written(model)


def test_a_default_device_changes_nothing(model):
    with torch.no_grad(), torch.device("cpu"):
        assert decodes_as_written(model)


# Programs of others


def test_peft_prefixes_are_obeyed():
    peft = pytest.importorskip("peft")
    model = sharp_model(encoder_attention_heads=4, decoder_layers=2)
    plain = paper(model)
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in tuned.prompt_encoder.parameters():
            parameter.mul_(5)
    found = paper(tuned)
    assert found == library(tuned) != plain


def test_peft_adapters_are_obeyed_and_merged_ones_are_fast():
    peft = pytest.importorskip("peft")
    model = sharp_model()
    plain = paper(model)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    found = paper(adapted)
    assert not is_as_written(adapted.get_base_model())
    assert found == library(adapted) != plain
    merged = adapted.merge_and_unload()
    assert is_as_written(merged)
    assert paper(merged) == found


def test_offloaded_weights_are_used(model):
    accelerate = pytest.importorskip("accelerate")
    plain = paper(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert not is_as_written(model)
    assert paper(model) == plain
