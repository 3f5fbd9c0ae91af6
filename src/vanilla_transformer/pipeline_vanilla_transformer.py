"""Translation as a transformers pipeline: text in, `[{"translation_text": ...}]` out, as version 4 had it.

    pipe = pipeline("vanilla-translation", model=folder)                      # with this package imported
    pipe = pipeline("translation", model=folder, trust_remote_code=True)      # anywhere, from `pipe.save_pretrained`

transformers 5 refuses the name "translation" unless the model's folder brings the pipeline, as the second does.
"""

import copy
import os
import unicodedata
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, Pipeline, StoppingCriteria, StoppingCriteriaList
from transformers.utils.logging import get_logger

from .base_vanilla_transformer import LIMIT_BY_SOURCE, TOKENS_BEYOND_SOURCE
from .eval_mode_vanilla_transformer import eval_mode
from .generation_vanilla_transformer import gnmt_beam_search, search_settings
from .language_tags_vanilla_transformer import check_target_language, is_blank, tag_sources

REGISTERED_TASK = "vanilla-translation"
SAVED_TASK = "translation"

logger = get_logger(__name__)


class VanillaTransformerTranslationPipeline(Pipeline):
    """Translate a string, a list of them, or a generator or data set of them (which gives an iterator).

    `batch_size`, `device` and the rest are those of every pipeline. All other arguments, at construction or at a call,
    are for `generate()`. The search is the paper's, `gnmt_beam_search`, which has no `early_stopping`, unless
    `do_sample` or `custom_generate` is set. What is not given is as the model's generation config says, the number of
    beams or else 4 and the length penalty or else 0.6; one beam is greedy. A source may have any length, and its
    translation at most 50 tokens more (section 6.1), unless `max_new_tokens` or `max_length` is set. Neither padding
    nor the rest of a batch changes a translation.
    """

    tokenizer: Any  # always there: it is loaded with the model
    model: Any  # with the methods of GenerationMixin
    _load_tokenizer = True  # type: ignore[assignment] # the base class declares None
    _load_processor = _load_feature_extractor = _load_image_processor = _load_video_processor = False  # type: ignore[assignment] # as above

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override] # no positional arguments
        """Translate.

        Args:
            inputs: A string, a list of strings, or a generator or torch data set of strings, such as a `KeyDataset`.
            return_tensors: Whether to return ids, "translation_token_ids", int64 of shape [length] without padding.
            return_text: Whether to return "translation_text"; by default unless `return_tensors` is set.
            batch_size: How many sources to translate together; 1 unless the pipeline was made with another.
            tgt_lang: The language to translate into, by a model of several: its tag is put before each text that
                begins with none.
            **kwargs: What `generate()` takes.

        Returns:
            A list of `num_return_sequences` dictionaries, best first. For a list of strings a list of such lists, or of
            the dictionaries themselves where there is one each; otherwise an iterator over such lists. The translation
            of a blank text is empty.

        Raises:
            TypeError: A text that is no string.
            ValueError: The model has no tag for the target language, or not the tag that a text begins with.
        """
        if not isinstance(inputs, list):
            return super().__call__(inputs, **kwargs)
        results = super().__call__(inputs, **kwargs) if inputs else []
        return [translations[0] for translations in results] if all(len(r) == 1 for r in results) else results

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and tokenizer with the code of all three, so that the folder loads as a pipeline anywhere.

        A save of the model alone, such as a checkpoint, brings the model's code only.
        """
        self._registered_impl = {SAVED_TASK: {"impl": type(self), "pt": (AutoModelForSeq2SeqLM,), "type": "text"}}
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            vars(self.model.config).pop("custom_pipelines", None)

    def _sanitize_parameters(
        self,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        tgt_lang: str | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Arguments for `preprocess`, `_forward` and `postprocess`, only what was given."""
        check_target_language(self.tokenizer, tgt_lang)
        returned = {"return_tensors": return_tensors, "return_text": return_text}
        return (
            {} if tgt_lang is None else {"tgt_lang": tgt_lang},
            generate_kwargs,
            {name: value for name, value in returned.items() if value is not None},
        )

    def preprocess(  # type: ignore[override] # this pipeline's input is a text
        self, text: str, tgt_lang: str | None = None
    ) -> dict[str, torch.Tensor]:
        """One text as a batch of one: `input_ids` and `attention_mask`, [1, length], and `has_text`, [1]."""
        if not isinstance(text, str):
            raise TypeError(
                f"a text to translate must be a string, not a {type(text).__name__}; several go in a list, a generator "
                "or a data set"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("a text to translate has half of a surrogate pair, which is no text")
        (source,) = tag_sources(self.tokenizer, [self._normalize(text)], tgt_lang)
        inputs = self.tokenizer(source, return_tensors="pt", verbose=False)
        return {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "has_text": torch.tensor([not is_blank(text)]),
        }

    def _normalize(self, text: str) -> str:
        """Convert a text to the Unicode normal form that the tokenizer's training text had, if that is known."""
        form = self.tokenizer.init_kwargs.get("unicode_normal_form")
        normalized = unicodedata.normalize(form, text) if form in ("NFC", "NFD") else text
        if normalized != text:
            logger.warning_once(
                f"some sources are not in Unicode normal form {form}, which the model was trained on; they are "
                "converted to it"
            )
        return normalized

    def _forward(  # type: ignore[override] # tensors in and out, nothing else
        self, model_inputs: dict[str, torch.Tensor], **generate_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """`output_ids`, int64 of shape [batch, num_return_sequences, length]; nothing but `<pad>` for blank texts."""
        has_text = model_inputs["has_text"]
        count = self._setting("num_return_sequences", generate_kwargs) or 1
        if not has_text.any():
            return {"output_ids": torch.empty(len(has_text), count, 0, dtype=torch.long)}
        sources = {name: model_inputs[name][has_text] for name in ("input_ids", "attention_mask")}
        ids = self._generate(sources, generate_kwargs)
        output_ids = ids.new_full((len(has_text), count, ids.shape[1]), self.tokenizer.pad_token_id)
        output_ids[has_text] = ids.view(-1, count, ids.shape[1])
        return {"output_ids": output_ids}

    def _generate(self, sources: dict[str, torch.Tensor], generate_kwargs: dict[str, Any]) -> torch.Tensor:
        """Run `generate()` in eval mode; int64 of shape [sources * num_return_sequences, length]."""
        settings = self._complete(dict(generate_kwargs), sources["attention_mask"].sum(dim=1))
        if self._setting("stop_strings", settings) is not None:
            settings.setdefault("tokenizer", self.tokenizer)
        with eval_mode(self.model):
            output = self.model.generate(**sources, **settings)
        return output if isinstance(output, torch.Tensor) else output.sequences

    def _complete(self, settings: dict[str, Any], source_lengths: torch.Tensor) -> dict[str, Any]:
        """The caller's settings, with the paper's search or, for samples, each source's own limit."""
        if "custom_generate" in settings:
            return settings
        limits = {self._setting(name, settings) for name in ("max_new_tokens", "max_length")}
        limited = not limits <= {None, LIMIT_BY_SOURCE}
        if self._setting("do_sample", settings):
            if not limited:
                limit = SourceLengthLimit(source_lengths)
                settings["stopping_criteria"] = StoppingCriteriaList([limit, *settings.get("stopping_criteria", [])])
            return settings
        search = search_settings(self._setting("num_beams", settings), self._setting("length_penalty", settings))
        if "generation_config" in settings:  # transformers warns where there is one and settings beside it
            settings["generation_config"] = copy.deepcopy(settings["generation_config"])
            settings["generation_config"].update(**search)
        else:
            settings |= search
        if "streamer" in settings:  # which gets the translation when the search is over
            settings["final_streamer"] = settings.pop("streamer")
        beyond_source = None if limited else TOKENS_BEYOND_SOURCE
        return settings | {"custom_generate": gnmt_beam_search, "tokens_beyond_source": beyond_source}

    def _setting(self, name: str, settings: dict[str, Any]) -> Any:
        """What `generate()` will go by: its argument, else that of the config it is given, else the model's own."""
        configs = (settings.get("generation_config"), self.model.generation_config)
        values = (settings.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    def postprocess(  # type: ignore[override] # tensors in, its own settings
        self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False, return_text: bool | None = None
    ) -> list[dict[str, Any]]:
        """The translations of one text, from its `output_ids` of shape [1, num_return_sequences, length]."""
        records = []
        for ids in model_outputs["output_ids"][0]:
            ids, record = ids[ids != self.tokenizer.pad_token_id], {}
            if return_tensors:
                record["translation_token_ids"] = ids
            if return_text or (return_text is None and not return_tensors):
                record["translation_text"] = self.tokenizer.decode(ids, skip_special_tokens=True)
            records.append(record)
        return records


class SourceLengthLimit(StoppingCriteria):
    """Ends a sample where it has 50 tokens more than its own source; `generate()` itself goes by the padded length.

    Args:
        source_lengths: Without padding, int64, [sources].
    """

    def __init__(self, source_lengths: torch.Tensor) -> None:
        self.limits = 1 + source_lengths + TOKENS_BEYOND_SOURCE  # 1 is the start token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        """Whether each row of `input_ids`, [sources * n, length], ends; a source's rows lie side by side."""
        return input_ids.shape[1] >= self.limits.repeat_interleave(input_ids.shape[0] // len(self.limits))


__all__ = ["VanillaTransformerTranslationPipeline"]
