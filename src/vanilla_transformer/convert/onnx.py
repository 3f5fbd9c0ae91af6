"""Export to ONNX, by transformers' own exporter."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.versions import require_version

from ..data.files import check_not_in_use, new_folder
from ..errors import UserError, require
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .weight_layout import check_model_class, float32_copy

# Versions with the exporter that this is written for; the rest of the package does with older ones.
ONNX_NEEDS = ("torch>=2.11", "transformers>=5.23")


def to_onnx(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the model as ONNX, in float32, by transformers' own exporter (which calls itself experimental).

    There are three graphs: `encoder.onnx`; `prefill.onnx`, which reads the start of a target and makes the cache; and
    `decode.onnx`, which reads one more token and the cache. Batch and lengths are free.
    `transformers.exporters.ExportedModel.from_pretrained(folder).runners` runs them in ONNX Runtime, each with the
    arguments and outputs of the module it comes from.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`.
        folder: Where to write, new or empty.

    Raises:
        UserError: Another kind of model, the folder is in use, or what the exporter needs is missing or too old.
    """
    check_model_class(model, VanillaTransformerForConditionalGeneration)
    check_not_in_use(folder, "export")
    check_exporter()
    passes = require("onnx_ir.passes.common", extra="onnx")
    with _quiet():
        exported = _exported_to_onnx(float32_copy(model))
    for component in exported.components.values():
        passes.ClearMetadataAndDocStringPass()(component.program)  # each node's place in the source code, with paths
    with new_folder(folder, "export") as partial:
        exported.save_pretrained(partial)


def check_exporter() -> None:
    """Refuse where the exporter is missing or too old.

    Raises:
        UserError: With what to install.
    """
    try:
        for requirement in ONNX_NEEDS:
            require_version(requirement)
    except ImportError as error:
        raise UserError(
            f"the export to ONNX needs {' and '.join(ONNX_NEEDS)}, but here are torch {torch.__version__} and "
            f"transformers {transformers.__version__}; install newer ones"
        ) from error
    for module in ("onnx", "onnxscript"):
        require(module, extra="onnx")


def _exported_to_onnx(model: PreTrainedModel) -> "transformers.exporters.ExportedModel":
    """The three graphs of `to_onnx`."""
    from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter  # not in all versions

    exporter = OnnxExporter()
    settings = OnnxConfig(dynamic=True)
    # More than one row, and more than one token in each: a size that is 1 while it is traced stays 1.
    some_id = model.config.decoder_start_token_id
    source = {"input_ids": torch.full((2, 5), some_id), "attention_mask": torch.ones(2, 5).long()}
    start = torch.full((2, 3), some_id)
    encoder = exporter.export(model.get_encoder(), dict(source), settings)
    search = GenerationConfig.from_model_config(model.config)
    search.use_cache = True
    decoder = exporter.export_for_generation(
        model,
        {**source, "decoder_input_ids": start},
        settings,
        generation_config=search,
    )
    components = {"encoder": encoder.components["model"], **decoder.components}
    return ExportedModel(components, exporter.export_format, model.config, model.generation_config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript report about themselves: some 60 lines that no one here can act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
