"""Write a trained model for another engine: transformers' own MarianMT, CTranslate2 or ONNX.

vanilla-transformer export --model_name_or_path runs/en-de-averaged --to ctranslate2 --output_dir runs/en-de-ct2
"""

from dataclasses import dataclass, field
from typing import Literal

from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from ..convert.ctranslate2 import check_quantization, to_ctranslate2
from ..convert.marian import to_marian
from ..convert.onnx import check_exporter, to_onnx
from ..data.files import check_not_in_use, new_folder
from ..errors import UserError, first_line
from ..inference.loading import load
from .arguments import CommandParser, names

HOW_TO_LOAD = {
    "marian": 'AutoModelForSeq2SeqLM.from_pretrained("{}"), with transformers alone',
    "ctranslate2": 'ctranslate2.Translator("{}")',
    "onnx": 'transformers.exporters.ExportedModel.from_pretrained("{}"), after import vanilla_transformer',
}


@dataclass
class ExportArguments:
    """Which model, to what, and where to."""

    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    to: Literal["marian", "ctranslate2", "onnx"] = field(metadata={"help": "The engine."})
    output_dir: str = field(metadata={"help": "New folder for the exported model and its tokenizer."})
    quantization: str | None = field(
        default=None, metadata={"help": "CTranslate2's type of the weights, such as int8; by default float32."}
    )


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        ExportArguments, prog="vanilla-transformer export", doc=__doc__, most_used=names(ExportArguments)
    )


def check(arguments: ExportArguments) -> None:
    """Refuse arguments that can't be, before a model is loaded.

    Raises:
        UserError: One sentence on what to give instead.
    """
    if arguments.quantization is not None and arguments.to != "ctranslate2":
        raise UserError(
            f"--quantization {arguments.quantization} goes with --to ctranslate2, not with --to {arguments.to}; leave "
            "it out"
        )
    check_not_in_use(arguments.output_dir, "export")
    if arguments.to == "ctranslate2":
        check_quantization(arguments.quantization)
    elif arguments.to == "onnx":
        check_exporter()


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    (arguments,) = make_parser().parse(argv)
    disable_progress_bar()
    check(arguments)
    folder = arguments.output_dir
    model, tokenizer = load(arguments.model_name_or_path, device="cpu")
    with new_folder(folder, "export") as partial:
        try:
            if arguments.to == "marian":
                to_marian(model).save_pretrained(partial)
            elif arguments.to == "ctranslate2":
                to_ctranslate2(model, tokenizer, partial, arguments.quantization)
            else:
                to_onnx(model, partial)
            tokenizer.save_pretrained(partial)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"can't write into {folder}: {reason}; free some space") from error
    print(f"The model is in {folder}; it loads with {HOW_TO_LOAD[arguments.to].format(folder)}")
