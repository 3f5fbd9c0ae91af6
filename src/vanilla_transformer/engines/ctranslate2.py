"""Translate with CTranslate2 in place of torch: a model is converted once, and kept in a cache.

The cache is the folder `vanilla_transformer/ctranslate2` of the Hugging Face cache (`HF_HOME`). Each model in it has a
name made from all that it was made of, is complete or not there, and can be removed at any time.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import vanilla_transformer

from ..base_vanilla_transformer import TOKENS_BEYOND_SOURCE
from ..convert.ctranslate2 import MAX_POSITIONS, to_ctranslate2
from ..convert.weight_layout import check_model_class
from ..errors import UserError, first_line, require
from ..hub.weights import weights_digest
from ..inference.settings import new_tokens_limit
from ..inference.translate import Translation
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

NAME = "ctranslate2"
# Fields of a generation config that are obeyed, or that do not matter to a search.
KNOWN_SETTINGS = {
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "max_new_tokens",
    "max_length",
    "early_stopping",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "transformers_version",
    "_from_model_config",
}
# Fields of a config that change when a model is saved and loaded.
UNRELATED = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class CTranslate2Engine:
    """A model in CTranslate2, which `translate(..., engine=...)` asks for translations.

    It gives what `export --to ctranslate2` and CTranslate2 give: log-probabilities of beams are divided by
    length^length_penalty, as with `search=None`, never as in the paper.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`, on a CPU or a CUDA device.
        tokenizer: Its tokenizer.
        dtype: One of CTranslate2's types, such as "int8", for weights and computation; "auto" for float32.
        cache_dir: Where converted models are kept. Defaults to a folder of the Hugging Face cache.

    Attributes:
        dtype: The type, never "auto".

    Raises:
        UserError: CTranslate2 is not installed, or the device does not have the type.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dtype: str = "auto",
        cache_dir: str | Path | None = None,
    ) -> None:
        self.dtype = check_compute_type(dtype, model.device)
        self._model, self._tokenizer = model, tokenizer
        self._cache_dir = Path(cache_dir or Path(HF_HOME, *_CACHE))
        self._translator: Any = None

    def load(self) -> Any:
        """Load the translator, and before that convert the model if it is not in the cache; `generate` calls this.

        Raises:
            UserError: CTranslate2 can't represent the model, the cache can't be written, or what is in it is damaged.
        """
        if self._translator is None:
            folder = convert_once(self._model, self._tokenizer, self.dtype, self._cache_dir)
            device = self._model.device
            try:
                self._translator = require("ctranslate2", extra="ct2").Translator(
                    str(folder),
                    device=device.type,
                    device_index=device.index or 0,
                    compute_type=self.dtype,
                    intra_threads=torch.get_num_threads(),
                )
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"CTranslate2 can't load {folder} ({first_line(error)}); remove that folder, and it is made again"
                ) from error
        return self._translator

    def check(self, config: GenerationConfig, settings: dict[str, Any], max_source_length: int) -> None:
        """Refuse what CTranslate2 can't do.

        Args:
            config: The model's generation config, with the settings.
            settings: Those of `translate`.
            max_source_length: The most tokens of a source.

        Raises:
            UserError: With the setting's name, and what to give instead.
        """
        if settings["num_beams"] > 1 and settings["length_penalty"] and settings.get("custom_generate") is not None:
            raise UserError(
                f"the engine {NAME} does not have the paper's length penalty, ((5 + length) / 6)^"
                f"{settings['length_penalty']:g}; give normalize {settings['length_penalty']:g} for length^"
                f"{settings['length_penalty']:g} in its place, length_penalty 0 for none, or num_beams 1"
            )
        for name, value in {**config.to_diff_dict(), **settings}.items():
            if name not in {*KNOWN_SETTINGS, "custom_generate"} and value not in (None, False, 0):
                raise UserError(
                    f"the engine {NAME} can't do {name} ({str(value)[:40]}), which is set here or in the model's "
                    "generation_config.json; leave it out, or translate without the engine"
                )
        own_end, start = self._tokenizer.eos_token_id, self._model.config.decoder_start_token_id
        if config.eos_token_id not in (own_end, [own_end]):
            raise UserError(
                f"the engine {NAME} ends a sentence with the tokenizer's {own_end}, but eos_token_id is "
                f"{config.eos_token_id}; translate without the engine"
            )
        if config.decoder_start_token_id not in (None, start):
            raise UserError(
                f"the engine {NAME} starts with the {start} of the model's config, but decoder_start_token_id is "
                f"{config.decoder_start_token_id}; translate without the engine"
            )
        if config.early_stopping not in (None, False, True):
            raise UserError(
                f"the engine {NAME} can't do early_stopping {config.early_stopping!r}; leave it out, or translate "
                "without the engine"
            )
        for name, limit in (("max_source_length", max_source_length), ("max_new_tokens", config.max_new_tokens)):
            if limit is not None and limit > MAX_POSITIONS:
                raise UserError(f"{name} is {limit:,}; the engine {NAME} has {MAX_POSITIONS:,} positions")

    def generate(self, token_ids: list[list[int]], config: GenerationConfig) -> list[Translation]:
        """Translate a batch of token ids.

        A translation has at most as many tokens as `max_new_tokens` says, else 50 more than the longest source has.

        Args:
            token_ids: Ids of each source, `</s>` at the end.
            config: The model's generation config with the settings that `check` has seen.

        Returns:
            `num_return_sequences` translations for each source, best first.
        """
        limit = new_tokens_limit(config)
        beams = config.num_beams or 1
        results = self.load().translate_batch(
            [self._tokenizer.convert_ids_to_tokens(ids) for ids in token_ids],
            beam_size=beams,
            num_hypotheses=config.num_return_sequences or 1,
            patience=2 if beams > 1 and not config.early_stopping else 1,
            length_penalty=(config.length_penalty or 0.0) if beams > 1 else 0.0,
            max_input_length=0,
            max_decoding_length=min(limit or max(map(len, token_ids)) + TOKENS_BEYOND_SOURCE, MAX_POSITIONS),
            min_decoding_length=0,
            return_scores=True,
        )
        hypotheses = [tokens for result in results for tokens in result.hypotheses]
        ids: Any = [self._tokenizer.convert_tokens_to_ids(tokens) for tokens in hypotheses]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return list(map(Translation, texts, [score for result in results for score in result.scores]))


_CACHE = ("vanilla_transformer", NAME)


def check_compute_type(dtype: str, device: torch.device) -> str:
    """Return CTranslate2's type of weights and computation for a dtype.

    Args:
        dtype: Its name; "auto" for float32.
        device: Where to compute.

    Raises:
        UserError: CTranslate2 is not installed, or can't compute in it there.
    """
    library = require("ctranslate2", extra="ct2")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {str(device)!r}; the engine {NAME} has cpu and cuda")
    name = "float32" if dtype == "auto" else dtype
    supported = sorted(library.get_supported_compute_types(device.type, device.index or 0))
    if name not in supported:
        raise UserError(f"dtype is {dtype!r}; the engine {NAME} has auto, {', '.join(supported)} on this device")
    return name


def convert_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, cache_dir: Path) -> Path:
    """Return the folder of the converted model, which is written if it is not in the cache.

    Several processes may ask for the same model: one converts it, and the others wait.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        dtype: CTranslate2's type of the weights.
        cache_dir: Where converted models are kept.

    Raises:
        UserError: CTranslate2 can't represent the model, or the cache can't be written.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in UNRELATED}
    parts = [
        weights_digest(model),
        json.dumps(config, sort_keys=True, default=str),
        tokenizer.backend_tokenizer.to_str(),
        vanilla_transformer.__version__,
        require("ctranslate2", extra="ct2").__version__,
        dtype,
    ]
    folder = cache_dir / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():  # perhaps made of a plain model with the same weights
                check_model_class(model, VanillaTransformerForConditionalGeneration)
            else:
                to_ctranslate2(model, tokenizer, folder, dtype)
    except OSError as error:
        raise UserError(
            f"can't write the cache {cache_dir}: {error.strerror}; make room, or set HF_HOME to another folder"
        ) from error
    return folder
