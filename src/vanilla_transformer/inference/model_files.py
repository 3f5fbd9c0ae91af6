"""Check the files of a saved model before it is loaded. Nothing is allocated, unpickled or run.

transformers initializes missing weights at random, ignores unexpected ones and an unreadable generation config, and
casts integers to floats. Here each of these is an error that names the file.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import cached_file

from ..base_vanilla_transformer import LIMIT_BY_SOURCE
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..errors import UserError, clean_token, first_line, hide_token
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .settings import MAX_BEAMS, MAX_LENGTH_PENALTY, is_finite_number, is_integer

CONFIG = "config.json"
RECORD_NAME = "run.json"  # what a training run says of itself
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
# From a folder with such a file transformers reads the weights of a distributed run, all *.safetensors there.
_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", re.ASCII)

MAX_JSON_BYTES = 10_000_000
MAX_UNCHECKED_LAYERS = 1000  # more layers than this need as many tensors in the weight files
MAX_LABELS = 10_000

DTYPES = ("float32", "bfloat16", "float16", "float64")
SAFETENSORS_DTYPES = ("F32", "F16", "BF16", "F64")

_AUTO_CLASS = AutoModelForSeq2SeqLM.__name__
# Fields that the config does not have, but that the masks and caches of transformers (5.23) read from any config.
_FOREIGN_FIELDS = (
    "attention_chunk_size",
    "is_causal",
    "kv_sharing_modes",
    "layer_types",
    "num_kv_shared_layers",
    "sliding_window",
)


def describe(error: BaseException) -> str:
    """Return the type and the first line of a library's error."""
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ").removesuffix(".")


@dataclass(frozen=True)
class SavedModel:
    """Where the files of a model are: a folder, or a repository on the Hub.

    Attributes:
        name_or_path: The folder, or the id of the repository.
        revision: Branch, tag or commit of the repository.
        token: Access token for the repository; white space around it is taken off.

    Raises:
        UserError: The token has characters that no token has.
    """

    name_or_path: str
    revision: str = "main"
    token: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", clean_token(self.token))

    @property
    def is_folder(self) -> bool:
        """Whether the model is in a folder on this machine."""
        return Path(self.name_or_path).is_dir()

    def find(self, name: str) -> Path | None:
        """Return the path of a file, downloaded if need be; None if there is no such file.

        Raises:
            UserError: The Hub does not give access.
        """
        if self.is_folder:
            path = Path(self.name_or_path, name)
            return path if path.is_file() else None
        return self._download(name, required=False)

    def require(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            UserError: There is no such file, folder or repository.
        """
        path = self.find(name) if self.is_folder else self._download(name, required=True)
        if path is None:
            raise UserError(
                f"the folder {self.name_or_path} has no {name}, so it does not hold a model with its tokenizer; give "
                "the folder that training wrote"
            )
        return path

    def _download(self, name: str, required: bool) -> Path | None:
        """Return the path of a file of a Hub repository, in the cache."""
        try:
            found = cached_file(
                self.name_or_path,
                name,
                revision=self.revision,
                token=self.token,
                _raise_exceptions_for_missing_entries=required,
                _raise_exceptions_for_connection_errors=required,
            )
        except Exception as error:  # of several libraries, and of the network
            raise UserError(
                f"can't load the model {self.name_or_path}: there is no such folder, and the Hugging Face Hub gave: "
                f"{hide_token(first_line(error), self.token)}"
            ) from error
        return Path(found) if found else None

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file that holds a JSON object.

        Raises:
            UserError: There is no such file, it is not JSON, or something else than an object.
        """
        path = self.require(name)
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise UserError(f"{path} has more than {MAX_JSON_BYTES:,} bytes; that is no {name} of a model")
            content = json.loads(path.read_text(encoding="utf-8"))
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}; check the file") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({first_line(error)}); save or download the model again") from error
        if not isinstance(content, dict):
            raise UserError(
                f"{path} holds {json.dumps(content)[:40]}, not a JSON object; save or download the model again"
            )
        return content


def read_config(saved: SavedModel, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read and check config.json.

    Args:
        saved: The model.
        trust_remote_code: Allow the model's own config class to run.

    Raises:
        UserError: The config is unreadable, of another architecture, for code that is not trusted, or asks for what is
            not supported.
    """
    fields = saved.read_json(CONFIG)
    path = saved.require(CONFIG)
    check_config_fields(fields, path)
    if not (trust_remote_code and "AutoConfig" in (fields.get("auto_map") or {})):
        _check_architecture(fields, path)
    if not (trust_remote_code and derived_class(fields)):
        _check_computation(fields, path)
    try:
        config = AutoConfig.from_pretrained(
            saved.name_or_path, revision=saved.revision, token=saved.token, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # whatever this raises, the file is the cause
        reason = " ".join(line.strip() for line in str(error).strip().split("\n")).removesuffix(".")
        reason = hide_token(reason, saved.token)
        raise UserError(f"{path}: {reason}; correct the file, or save or download the model again") from error
    return config


def check_config_fields(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse fields of a config.json that transformers would stumble over or that would run code.

    Raises:
        UserError: With file, field, value and what is allowed.
    """
    if fields.get("quantization_config") is not None:
        raise UserError(
            f"{path} has a quantization_config; quantized weights can't be loaded here, so give the model from before "
            "the quantization"
        )
    for name in ("dtype", "torch_dtype"):
        if fields.get(name) is not None and str(fields[name]).removeprefix("torch.") not in DTYPES:
            raise UserError(f"{path}: {name} is {fields[name]!r}; it must be one of {', '.join(DTYPES)}")
    if "configuration_files" in fields:
        raise UserError(
            f"{path} has configuration_files, so transformers would read another file in its place; remove the field"
        )
    if fields.get("transformers_weights") is not None:
        raise UserError(f"{path} has transformers_weights; remove it and name the weights {WEIGHTS}")
    labels = fields.get("num_labels")
    if labels is not None and not (is_integer(labels) and 0 <= labels <= MAX_LABELS):
        raise UserError(f"{path}: num_labels is {labels!r}; it must be from 0 to {MAX_LABELS:,}, or left out")
    for name in ("attn_implementation", "_attn_implementation"):  # a name with a slash would download code
        if fields.get(name) not in (None, "eager", *ALL_ATTENTION_FUNCTIONS):
            raise UserError(f"{path}: {name} is {fields[name]!r}; leave it out, or give eager or sdpa")
    check_auto_map(fields, path)


def check_auto_map(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse an `auto_map` that is not a mapping from classes of transformers to names of classes.

    Raises:
        UserError: With file and value.
    """
    auto_map = fields.get("auto_map")
    if auto_map is None:
        return
    names = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    flat = [part for name in names for part in (name if isinstance(name, list) else [name]) if part is not None]
    if not isinstance(auto_map, dict) or not all(isinstance(name, str) and "." in name for name in flat):
        raise UserError(
            f"{path}: auto_map is {json.dumps(auto_map)[:60]}; it must map classes such as AutoConfig to names such as "
            "file.Class, or be left out"
        )


def _check_architecture(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse a config of another architecture."""
    model_type = fields.get("model_type")
    own = VanillaTransformerConfig.model_type
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        if issubclass(CONFIG_MAPPING[model_type], VanillaTransformerConfig):
            return
    elif fields.get("auto_map"):
        raise UserError(
            f"can't load the model of {path}: it brings model code of its own; read that code and, if you trust it, "
            "set trust_remote_code"
        )
    raise UserError(f"{path}: model_type is {model_type!r}; it must be {own!r}, as other architectures can't be loaded")


def derived_class(fields: Mapping[str, Any]) -> str | None:
    """Return the class that a config's `auto_map` has for the whole model; None for this package's or none."""
    name = (fields.get("auto_map") or {}).get(_AUTO_CLASS)
    own = VanillaTransformerForConditionalGeneration.__name__
    return name if isinstance(name, str) and name.rpartition(".")[2] != own else None


def _check_computation(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse a config with which this package's class would compute something else than was saved."""
    if derived := derived_class(fields):
        raise UserError(
            f"{path}: the model is one of the class {derived}, whose code comes with it; read that code and, if you "
            "trust it, load the model with trust_remote_code"
        )
    for name in _FOREIGN_FIELDS:
        if name in fields:
            raise UserError(
                f"{path}: {name} is {json.dumps(fields[name])[:40]}, which would change what the attention sees; "
                "remove the field"
            )


class SavedWeight(NamedTuple):
    """A tensor in a weight file, by its header alone."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def read_weight_headers(saved: SavedModel) -> dict[str, SavedWeight]:
    """Read the names, shapes and dtypes of all weights, from the headers of the safetensors files.

    Raises:
        UserError: A file is missing or damaged, the weights are pickled or there twice, or the folder holds an adapter.
    """
    if saved.find(ADAPTER):
        raise UserError(
            f"{saved.name_or_path} holds an adapter of PEFT ({ADAPTER}); merge it into its model with "
            "merge_and_unload(), and save that model"
        )
    names = [path.name for path in Path(saved.name_or_path).iterdir()] if saved.is_folder else []
    if of_a_run := next(filter(_DISTRIBUTED_SHARD.fullmatch, sorted(names)), None):
        raise UserError(
            f"{saved.name_or_path} has {of_a_run}, which transformers would read in place of {WEIGHTS}; move it to "
            "another folder"
        )
    shards = _name_shards(saved) if saved.find(WEIGHTS_INDEX) else []
    if single := saved.find(WEIGHTS):
        if shard := next((name for name in shards if name != WEIGHTS and saved.find(name)), None):
            raise UserError(
                f"{saved.name_or_path} has both {WEIGHTS} and {shard}, which are the weights of two saves, and only "
                f"the first would be read; remove {WEIGHTS}, or {WEIGHTS_INDEX} with its files"
            )
        files = [single]
    elif shards:
        files = [_find_shard(saved, name) for name in shards]
    else:
        pickled = next((name for name in PICKLED_WEIGHTS if saved.find(name)), None)
        if pickled:
            raise UserError(
                f"{saved.name_or_path} has {pickled} but no {WEIGHTS}; a pickle can run code, so it is not read: "
                "convert it to safetensors with save_pretrained, in an environment that you trust"
            )
        raise UserError(
            f"{saved.name_or_path} has no {WEIGHTS}, so there are no weights to load; save or download the model again"
        )
    weights = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    tensor = tensors.get_slice(name)
                    weights[name] = SavedWeight(tuple(tensor.get_shape()), tensor.get_dtype(), file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{file} can't be read as safetensors ({describe(error)}); save or download the model again"
            ) from error
    return weights


def _name_shards(saved: SavedModel) -> list[str]:
    """Return the names of the weight files that the index has."""
    index = saved.require(WEIGHTS_INDEX)
    weight_map = saved.read_json(WEIGHTS_INDEX).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and weight_map else {None}
    shards = []
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index}: weight_map must name a file such as model-00001-of-00002.safetensors for each weight, but "
                f"has {name!r}; save or download the model again"
            )
        shards.append(name)
    return shards


def _find_shard(saved: SavedModel, name: str) -> Path:
    """Return the path of a weight file that the index names."""
    path = saved.find(name)
    if path is None:
        raise UserError(f"{saved.name_or_path} has no {name}, which {WEIGHTS_INDEX} names; download it again")
    return path


def check_weights(config: PreTrainedConfig, weights: Mapping[str, SavedWeight], path: Path) -> None:
    """Compare the weights in the files with those of the model that the config describes.

    Args:
        config: A config of this package's architecture.
        weights: The weights in the files.
        path: Where the config is, for errors.

    Raises:
        UserError: A weight is missing, unexpected, of another shape or of a dtype that is no ordinary float.
    """
    _check_weight_dtypes(weights)
    layers = {name: getattr(config, name, 0) for name in ("encoder_layers", "decoder_layers")}
    largest = max(layers, key=lambda name: layers[name])
    if layers[largest] > max(len(weights), MAX_UNCHECKED_LAYERS):
        raise UserError(
            f"{path}: {largest} is {layers[largest]:,}, but the weight files hold only {len(weights):,} tensors; "
            f"correct the file, or save or download the model again"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForSeq2SeqLM.from_config(config)
    except Exception as error:  # such as a size that overflows; whatever it is, the config is the cause
        raise UserError(f"{path} does not describe a model ({describe(error)}); correct the file") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."  # the base model saved alone has names without it
    found = {name if name in expected else prefix + name: weight for name, weight in weights.items()}
    names = {name if name in expected else prefix + name: name for name in weights}
    folder = next(iter(weights.values())).file.parent if weights else path.parent

    tied = {target: source for target, source in model.all_tied_weights_keys.items()}
    missing = [name for name in expected if name not in found and not _has_tied(name, tied, found)]
    if missing:
        raise UserError(
            f"the weight files in {folder} lack {_name_some(missing)}; the file or {path.name} is incomplete or of "
            "another model, so save or download the model again"
        )
    unexpected = [names[name] for name in found if name not in expected]
    if unexpected:
        raise UserError(
            f"{weights[unexpected[0]].file} has {_name_some(unexpected)}, which the model that {path.name} describes "
            "does not have; save or download the model again"
        )
    for name, weight in found.items():
        if weight.shape != expected[name]:
            raise UserError(
                f"{weight.file}: {names[name]} has the shape {list(weight.shape)}, but {path.name} asks for "
                f"{list(expected[name])}; save or download the model again"
            )


def _check_weight_dtypes(weights: Mapping[str, SavedWeight]) -> None:
    """Refuse integers and other kinds of numbers that are no ordinary floats."""
    for name, weight in weights.items():
        if weight.dtype not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{weight.file}: {name} is of type {weight.dtype}; weights must be one of "
                f"{', '.join(SAFETENSORS_DTYPES)}, so give the model from before any quantization"
            )


def _has_tied(name: str, tied: Mapping[str, str], found: Mapping[str, Any]) -> bool:
    """Return whether the files have a weight under the name of one that it is tied to."""
    source = tied.get(name, name)
    group = {source, *(target for target, other in tied.items() if other == source)}
    return len(group) > 1 and not group.isdisjoint(found)


def _name_some(names: list[str]) -> str:
    """Name the first of several weights, with their number."""
    others = f" and {len(names) - 1:,} more weights" if len(names) > 1 else ""
    return f"{names[0]}{others}"


def check_finite(
    named_weights: Iterable[tuple[str, torch.Tensor]], where: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Refuse weights that hold NaN or infinity.

    Args:
        named_weights: Names and tensors, as from `named_parameters`.
        where: Folder, file or repository of the model, for errors.
        dtype: What the weights were converted to; None for nothing.

    Raises:
        UserError: With the name of the first such weight.
    """
    for name, weight in named_weights:
        if not torch.isfinite(weight).all():
            converted = "" if dtype is None else f" in {dtype}".replace("torch.", "")
            remedy = "give an earlier checkpoint" + (", or a dtype of greater range" if converted else "")
            raise UserError(
                f"{where}: the weight {name} holds NaN or infinity{converted}, as after a training run that diverged; "
                f"{remedy}"
            )


# Fields of generation_config.json: what a value may be, in words and as a test. None is allowed for all of them.
_GENERATION_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_beams": (f"an integer from 1 to {MAX_BEAMS}", lambda value: is_integer(value) and 1 <= value <= MAX_BEAMS),
    "length_penalty": (
        f"a number from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}",
        lambda value: is_finite_number(value) and abs(value) <= MAX_LENGTH_PENALTY,
    ),
    "early_stopping": ('true, false or "never"', lambda value: isinstance(value, bool) or value == "never"),
    **{
        name: ("an integer of at least 1", lambda value: is_integer(value) and value >= 1)
        for name in ("num_return_sequences", "max_new_tokens")
    },
    "max_length": (
        f"an integer of at least 1, or {LIMIT_BY_SOURCE} for a limit by the source's length",
        lambda value: is_integer(value) and (value >= 1 or value == LIMIT_BY_SOURCE),
    ),
    **{
        name: ("an integer of at least 0", lambda value: is_integer(value) and value >= 0)
        for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "top_k")
    },
    **{
        name: ("a number above 0", lambda value: is_finite_number(value) and value > 0)
        for name in ("temperature", "repetition_penalty", "encoder_repetition_penalty")
    },
    **{
        name: ("a number from 0 to 1", lambda value: is_finite_number(value) and 0 <= value <= 1)
        for name in ("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    },
    **{name: ("true or false", lambda value: isinstance(value, bool)) for name in ("do_sample", "use_cache")},
}
_TOKEN_ID_FIELDS = ("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
_TOKEN_IDS_FIELDS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


def check_generation_config(saved: SavedModel, vocab_size: int) -> None:
    """Check generation_config.json, which transformers ignores if it can't read it.

    Without that file transformers takes the same fields from config.json, which is then checked.

    Args:
        saved: The model.
        vocab_size: Number of token ids of the model.

    Raises:
        UserError: The file is unreadable, or a field has a value that can't be.
    """
    file = GENERATION_CONFIG if saved.find(GENERATION_CONFIG) else CONFIG
    path, known = saved.require(file), vars(GenerationConfig())
    fields = {name: value for name, value in saved.read_json(file).items() if file != CONFIG or name in known}
    for name, (allowed, is_allowed) in _GENERATION_FIELDS.items():
        if fields.get(name) is not None and not is_allowed(fields[name]):
            raise UserError(f"{path}: {name} is {fields[name]!r}; it must be {allowed}")
    for name in (*_TOKEN_ID_FIELDS, *_TOKEN_IDS_FIELDS):
        value = fields.get(name)
        if value is None:
            continue
        ids: list[Any] = value if isinstance(value, list) and name in _TOKEN_IDS_FIELDS else [value]
        if not all(is_integer(token_id) and 0 <= token_id < vocab_size for token_id in ids):
            raise UserError(f"{path}: {name} is {value!r}; it must be in the vocabulary, from 0 to {vocab_size - 1}")
    try:
        GenerationConfig.from_dict(fields).validate()
    except Exception as error:  # whatever this raises, the file is the cause
        remedy = "correct the file" if file == CONFIG else "correct it, or remove it"
        raise UserError(f"{path} can't be used ({describe(error)}); {remedy}") from error
