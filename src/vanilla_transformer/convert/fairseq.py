"""Convert weights that were trained with fairseq; those of OpenNMT-py are refused with the reason.

Neither package is needed, and no code that a checkpoint names is run; see `torch_file`.
"""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as repr_short
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.files import check_not_in_use, new_folder
from ..data.text_files import read_lines
from ..data.tokenization import EOS_TOKEN, SPECIAL_TOKENS, PreTrainedTokenizerFast, dictionary_tokenizer
from ..errors import UserError, first_line
from ..generation_vanilla_transformer import paper_generation_config
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .torch_file import Unread, read_torch_file
from .weight_layout import interleave

# fairseq's name of an activation, and transformers'.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "swish": "silu",
    "tanh": "tanh",
}


# Options of fairseq that are numbers here.
NUMBERS = (
    "encoder_attention_heads",
    "decoder_attention_heads",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "relu_dropout",
)
MAX_LAYERS = 1000


# Options of fairseq that make another model than the paper's.
PRE_NORM = "it normalizes before each sub-layer (pre-norm), the paper's model after each"


LEARNED = "its positions are learned, the paper's are sinusoids"


REFUSED_OPTIONS = {
    "encoder_normalize_before": PRE_NORM,
    "decoder_normalize_before": PRE_NORM,
    "encoder_learned_pos": LEARNED,
    "decoder_learned_pos": LEARNED,
    "no_token_positional_embeddings": "it has no positions",
    "layernorm_embedding": "it normalizes the embeddings",
    "adaptive_input": "its embeddings are adaptive",
    "adaptive_softmax_cutoff": "its output layer is an adaptive softmax",
    "no_cross_attention": "its decoder has no attention over the encoder's output",
    "cross_self_attention": "its decoder attends to source and target together",
}


# What a state dict of fairseq holds beside the parameters: buffers, and in 0.12 copies that are made anew in loading.
NOT_PARAMETERS = re.compile(
    r"(encoder|decoder)\.(version|embed_positions\.(weights|_float_tensor))"
    r"|encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)"
)


# fairseq 0.6 had layer_norms.0 and so on.
NUMBERED_NORMS = {
    ("encoder", "0"): "self_attn_layer_norm",
    ("encoder", "1"): "final_layer_norm",
    ("decoder", "0"): "self_attn_layer_norm",
    ("decoder", "1"): "encoder_attn_layer_norm",
    ("decoder", "2"): "final_layer_norm",
}


def convert_checkpoint(
    checkpoint: str | Path, dictionaries: Sequence[str | Path], output_dir: str | Path
) -> PreTrainedModel:
    """Write a model that fairseq trained (`transformer`, post-norm) as an ordinary model folder, tokenizer and all.

    The logits are the same. fairseq's positions differ from the paper's: sines come before cosines, which is made up
    for by the order of the weights, and their offset and denominators are the config's `position_convention`.
    The tokenizer takes text as fairseq's own commands do, see `dictionary_tokenizer`.

    Args:
        checkpoint: A .pt file of fairseq.
        dictionaries: fairseq's dict.<lang>.txt, a type and its count in each line. One is enough where source and
            target share an embedding; otherwise both, which must be the same.
        output_dir: A folder that is new or empty.

    Returns:
        The model, in float32.

    Raises:
        UserError: A checkpoint that can't be read, that is another model than the paper's, or that does not go with
            the dictionary; or a folder that is not empty.
    """
    output_dir = Path(output_dir)
    check_not_in_use(output_dir, "model")
    contents = read_torch_file(checkpoint)
    _refuse_opennmt(checkpoint, contents)
    options = _read_options(checkpoint, contents)
    model = _make_model(checkpoint, _rename_weights(checkpoint, contents, options), options)
    tokenizer = _make_tokenizer(checkpoint, model.config, dictionaries)
    model.generation_config = paper_generation_config(model)
    with new_folder(output_dir, "model") as partial:
        try:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        except (OSError, SafetensorError) as error:
            raise UserError(f"can't write the model into {output_dir}: {first_line(error)}; free some space") from error
    return model


def _unwrap(value: Any) -> Any:
    """Take a setting out of what omegaconf pickles around it, or the settings out of an argparse.Namespace."""
    for _ in range(2):  # a node in a node
        if isinstance(value, Unread):
            state = value.state if isinstance(value.state, dict) else {}
            value = state.get("_content", state.get("_val"))
    return vars(value) if isinstance(value, Namespace) else value


def _settings(value: Any) -> dict[str, Any]:
    """Return settings by their names, one level deep; empty where there are none."""
    value = _unwrap(value)
    if not isinstance(value, dict):
        return {}
    return {name: _unwrap(item) for name, item in value.items() if isinstance(name, str)}


def _refuse_opennmt(path: str | Path, contents: dict[str, Any]) -> None:
    """Refuse a checkpoint of OpenNMT-py, none of whose models is the paper's.

    In 2017 the norms followed the sub-layers, but divided by the standard deviation plus 0.001; since then they come
    before.

    Raises:
        UserError: It is one.
    """
    options, names = _settings(contents.get("opt")), contents.get("model")
    if not options or not isinstance(names, dict) or "generator" not in contents:
        return
    if "encoder.layer_norm.weight" in names or "encoder.layer_norm.a_2" in names:
        reason = (
            "normalizes before each sub-layer and once more after the last (encoder.layer_norm), where the paper's "
            "normalizes after each, and its output layer (generator) has a bias"
        )
    elif any(name.endswith("self_attn.layer_norm.a_2") for name in names):
        reason = (
            "is that of 2017, whose norms (a_2, b_2) divide by the standard deviation plus 0.001 and not by the root "
            "of the variance plus 0.00001"
        )
    else:
        reason = f"has the encoder_type {repr_short(options.get('encoder_type'))}"
    raise UserError(f"{path} is a checkpoint of OpenNMT-py, and its model {reason}; it has no exact conversion")


def _read_options(path: str | Path, contents: dict[str, Any]) -> dict[str, Any]:
    """Read the options of the model: `args` until fairseq 0.10, the part `model` of `cfg` since."""
    options = _settings(contents.get("args")) or _settings(_settings(contents.get("cfg")).get("model"))
    heads = {"encoder_attention_heads", "decoder_attention_heads"}
    if not heads <= options.keys() or not isinstance(contents.get("model"), dict):
        raise UserError(
            f"{path} is not a checkpoint of fairseq's transformer, which has its weights under 'model' and "
            "encoder_attention_heads and decoder_attention_heads among its options, under 'args' or 'cfg'"
        )
    for field, reason in REFUSED_OPTIONS.items():
        if options.get(field):
            raise UserError(f"{path} has {field}={repr_short(options[field])}: {reason}; it has no exact conversion")
    if str(options.get("activation_fn", "relu")) not in ACTIVATIONS:
        raise UserError(
            f"{path} has activation_fn={repr_short(options['activation_fn'])}; those that can be converted are "
            f"{', '.join(ACTIVATIONS)}"
        )
    for field in NUMBERS:
        if not isinstance(options.get(field), int | float | None):
            raise UserError(f"{path} has {field}={repr_short(options[field])}; it must be a number")
    return options


def _rename_weights(path: str | Path, contents: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters by fairseq's present names."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in contents["model"].items():
        if not isinstance(name, str):
            raise UserError(f"{path} has a weight with the name {repr_short(name)}; it must be a text")
        if NOT_PARAMETERS.fullmatch(name):
            continue
        if not isinstance(weight, torch.Tensor):
            raise UserError(f"in {path} the weight {name} is no tensor")
        if weight.dim() == 0 or not weight.is_floating_point() or not weight.isfinite().all():
            kind = str(weight.dtype).removeprefix("torch.")
            raise UserError(
                f"in {path} the weight {name} is {kind} of shape {tuple(weight.shape)}; it must be floating point, "
                "finite and have a dimension"
            )
        if packed := re.fullmatch(r"(.*_attn)\.in_proj_(weight|bias)", name):
            weights |= {
                f"{packed[1]}.{x}_proj.{packed[2]}": part for x, part in zip("qkv", weight.chunk(3), strict=False)
            }
            continue
        if numbered := re.fullmatch(r"((encoder|decoder)\.layers\.\d+)\.layer_norms\.(\d)\.(weight|bias)", name):
            norm = NUMBERED_NORMS.get((numbered[2], numbered[3]), numbered[3])
            name = f"{numbered[1]}.{norm}.{numbered[4]}"
        weights["decoder.output_projection.weight" if name == "decoder.embed_out" else name] = weight
    if options.get("share_decoder_input_output_embed") or options.get("share_all_embeddings"):
        if "decoder.embed_tokens.weight" in weights:
            weights.setdefault("decoder.output_projection.weight", weights["decoder.embed_tokens.weight"])
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
        if weights.get(f"{name}.weight") is None:
            raise UserError(f"{path} has no {name}.weight, so it is not a whole checkpoint of fairseq's transformer")
    return weights


def _make_model(
    path: str | Path, weights: dict[str, torch.Tensor], options: dict[str, Any]
) -> VanillaTransformerForConditionalGeneration:
    """Make the model with these weights; what does not fit is found before memory is taken for it."""
    source, target = weights["encoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"]
    if len(source) != len(target):
        raise UserError(
            f"{path} has {len(source):,} source types and {len(target):,} target types; only a joint dictionary can "
            "be converted"
        )
    output = weights["decoder.output_projection.weight"]
    tied = torch.equal(source, target) and torch.equal(target, output)
    sizes = _stack_sizes("encoder", weights, options) | _stack_sizes("decoder", weights, options)
    if len(source.shape) != 2 or len(target.shape) != 2:
        raise UserError(f"{path} has an embedding of {source.dim()} dimensions; it must have 2")
    try:
        config = VanillaTransformerConfig(
            vocab_size=source.shape[0],
            d_model=source.shape[1],
            **sizes,  # type: ignore[arg-type] # each of them is an int
            dropout=options.get("dropout") or 0,
            attention_dropout=options.get("attention_dropout") or 0,
            activation_dropout=options.get("activation_dropout") or options.get("relu_dropout") or 0,
            activation_function=ACTIVATIONS[options.get("activation_fn", "relu")],
            scale_embedding=not options.get("no_scale_embedding", False),
            position_convention="fairseq",
            tie_word_embeddings=tied,
            decoder_start_token_id=SPECIAL_TOKENS.index(EOS_TOKEN),
        )
    except ValueError as error:
        raise UserError(f"{path} has a shape that no model can have: {first_line(error)}") from error
    with torch.device("meta"):
        expected = dict(VanillaTransformerForConditionalGeneration(config).state_dict())
    names = {_our_name(name): name for name in weights}
    expected.pop("model.shared.weight", None)  # as encoder.embed_tokens
    for name in sorted(names.keys() | expected.keys()):
        if name not in expected:
            raise UserError(f"{path} has the weight {names[name]}, for which the paper's model has no place")
        if name not in names:
            raise UserError(f"{path} lacks the weight {name.removeprefix('model.')}; give a whole checkpoint")
        shape = tuple(weights[names[name]].shape)
        if shape != tuple(expected[name].shape):
            raise UserError(
                f"{path} has the weight {names[name]} in the shape {shape}; with its other weights it must be "
                f"{tuple(expected[name].shape)}"
            )
    # An embedding that is another matrix too is in the file once; other weights must not share their data.
    repeated = {"model.encoder.embed_tokens.weight"} if torch.equal(source, target) else set()
    repeated |= {"model.decoder.embed_tokens.weight"} if torch.equal(target, output) else set()
    distinct = expected.keys() - repeated
    size = sum(weights[names[name]].numel() * weights[names[name]].itemsize for name in distinct)
    if size > Path(path).stat().st_size:
        raise UserError(f"{path} has weights of {size:,} bytes, more than the file has; give a whole checkpoint")
    ordered = interleave({name: weights[names[name]] for name in expected}, config.d_model)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    parameters = model.state_dict()
    with torch.no_grad():
        for name, weight in ordered.items():
            parameters[name].copy_(weight)
    return model


def _stack_sizes(stack: str, weights: dict[str, torch.Tensor], options: dict[str, Any]) -> dict[str, int]:
    """Return the encoder's or the decoder's fields of the config."""
    layers = {match[1] for name in weights if (match := re.match(rf"{stack}\.layers\.(\d+)\.", name))}
    if len(layers) > MAX_LAYERS:
        raise UserError(f"the checkpoint has {len(layers):,} {stack} layers; at most {MAX_LAYERS:,} are converted")
    return {
        f"{stack}_layers": len(layers),
        f"{stack}_attention_heads": options[f"{stack}_attention_heads"],
        f"{stack}_ffn_dim": len(weights.get(f"{stack}.layers.0.fc1.weight", ())),
    }


def _our_name(name: str) -> str:
    return "lm_head.weight" if name == "decoder.output_projection.weight" else f"model.{name}"


def _make_tokenizer(
    path: str | Path, config: VanillaTransformerConfig, dictionaries: Sequence[str | Path]
) -> PreTrainedTokenizerFast:
    """Make the tokenizer with the dictionary's ids."""
    if not config.tie_word_embeddings and len(dictionaries) < 2:
        raise UserError(
            f"{path} has an embedding for the source and another for the target; give both dictionaries, which must "
            "be the same"
        )
    types, *others = [read_dictionary(dictionary) for dictionary in dictionaries]
    if any(other != types for other in others):
        raise UserError(
            f"the dictionaries {' and '.join(map(str, dictionaries))} differ; only a joint dictionary can be converted"
        )
    if len(types) != config.vocab_size:
        raise UserError(
            f"{dictionaries[0]} has {len(types):,} types, {len(SPECIAL_TOKENS)} special tokens included, but {path} "
            f"has {config.vocab_size:,}; give the dictionary that it was trained with"
        )
    return dictionary_tokenizer(types)


def read_dictionary(path: str | Path) -> list[str]:
    """Read the types of a fairseq dictionary in the order of their ids, special tokens first.

    Raises:
        UserError: The file can't be read, a line is not a type and its count, or a type comes twice.
    """
    types = dict.fromkeys(SPECIAL_TOKENS)
    for number, line in enumerate(read_lines(path), start=1):
        entry = re.fullmatch(r"(.*) -?\d+( #fairseq:overwrite)?", line.rstrip())
        if not entry:
            raise UserError(f"{path}, line {number} is {line!r}; it must be a type and its count")
        if entry[1] in types:
            raise UserError(f"{path}, line {number}: the type {entry[1]!r} is there already, so it would have two ids")
        types[entry[1]] = None
    return list(types)
