"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017) for Hugging Face transformers."""

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_vanilla_transformer import VanillaTransformerConfig
    from .generation_vanilla_transformer import gnmt_beam_search
    from .modeling_vanilla_transformer import (
        VanillaTransformerDecoder,
        VanillaTransformerEncoder,
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerModel,
        VanillaTransformerPreTrainedModel,
    )
    from .pipeline_vanilla_transformer import VanillaTransformerTranslationPipeline

__version__ = "0.2.0"

__all__ = [
    "VanillaTransformerConfig",
    "VanillaTransformerDecoder",
    "VanillaTransformerEncoder",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
    "VanillaTransformerTranslationPipeline",
    "gnmt_beam_search",
]


@cache
def register() -> None:
    """Register config, models and pipeline with the auto classes. `import vanilla_transformer` does this.

    From then on every save carries its code files, so that it also loads where this package is not installed.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from . import configuration_vanilla_transformer as configuration
    from . import generation_vanilla_transformer as generation
    from . import modeling_vanilla_transformer as modeling
    from . import pipeline_vanilla_transformer as pipeline

    for module in (configuration, modeling, pipeline):
        globals().update({name: getattr(module, name) for name in module.__all__})
    globals()["gnmt_beam_search"] = generation.gnmt_beam_search

    config_class = configuration.VanillaTransformerConfig
    AutoConfig.register("vanilla_transformer", config_class)
    AutoModel.register(config_class, modeling.VanillaTransformerModel)
    AutoModelForSeq2SeqLM.register(config_class, modeling.VanillaTransformerForConditionalGeneration)
    config_class.register_for_auto_class()
    modeling.VanillaTransformerModel.register_for_auto_class("AutoModel")
    modeling.VanillaTransformerForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
    PIPELINE_REGISTRY.register_pipeline(
        pipeline.REGISTERED_TASK,
        pipeline_class=pipeline.VanillaTransformerTranslationPipeline,
        pt_model=AutoModelForSeq2SeqLM,
        type="text",
    )


def __getattr__(name: str) -> Any:
    """Give the public names, which `register` imports."""
    if name in __all__:
        register()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _runs_the_command() -> bool:
    """Whether this process was started as the console command, which registers only when it needs torch.

    Its --help answers at once for that. Processes that the command starts (data loader workers, the check of a pushed
    model) copy `sys.argv` but not `sys.orig_argv`, and register at import as every other program does.
    """
    words = getattr(sys, "argv", [])  # missing where Python is embedded
    if not 0 < len(words) <= len(sys.orig_argv):
        return False
    main_program = sys.orig_argv[-len(words)]  # before the program's own arguments: a file, or -m's module
    if words[0] == "-m":  # what it is while Python looks for the module
        return main_program == __name__
    name = Path(main_program).name.lower().removesuffix(".exe")
    return main_program == words[0] and name == "vanilla-transformer"


if not _runs_the_command():
    register()
