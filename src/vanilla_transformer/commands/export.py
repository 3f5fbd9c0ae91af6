"""Write a trained model for another engine: transformers' own MarianMT, CTranslate2 or ONNX.

vanilla-transformer export --model_name_or_path runs/en-de-averaged --to ctranslate2 --output_dir runs/en-de-ct2
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from ..convert.ctranslate2 import to_ctranslate2
from ..convert.marian import to_marian
from ..convert.onnx import to_onnx
from ..data.files import in_use, new_folder
from ..errors import UserError
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


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    (arguments,) = make_parser().parse(argv)
    disable_progress_bar()
    folder = arguments.output_dir
    if arguments.quantization and arguments.to != "ctranslate2":
        raise UserError(f"--quantization goes with --to ctranslate2, not with --to {arguments.to}; leave it out")
    if in_use(Path(folder)):
        raise UserError(f"{folder} already exists and is not empty; give another --output_dir")
    model, tokenizer = load(arguments.model_name_or_path, device="cpu")
    with new_folder(folder, "export") as partial:
        if arguments.to == "marian":
            to_marian(model).save_pretrained(partial)
        elif arguments.to == "ctranslate2":
            to_ctranslate2(model, tokenizer, partial, arguments.quantization)
        else:
            to_onnx(model, partial)
        tokenizer.save_pretrained(partial)
    print(f"The model is in {folder}; it loads with {HOW_TO_LOAD[arguments.to].format(folder)}")
