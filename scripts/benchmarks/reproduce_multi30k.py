"""Train and score the published benchmark of Wu et al. 2021 (ACL) on Multi30k, English to German, from one command.

python scripts/benchmarks/reproduce_multi30k.py --data_dir data/multi30k-bpe --output_dir runs/multi30k-bpe

The folder of data holds train, valid and test.2016 (.en and .de, plain or .gz), segmented by subword-nmt ("@@ "), and
its codes, code or code.gz. All further arguments are those of `vanilla-transformer train` and replace the recipe's.
"""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import print_header, run

from vanilla_transformer.commands import evaluate, train
from vanilla_transformer.data.files import in_use
from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.data.text_files import read_lines
from vanilla_transformer.data.tokenization import subword_nmt_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoints import complete_checkpoints

SPLITS = ("train", "valid", "test.2016")
LANGUAGES = ("en", "de")
AVERAGED = 10
# 8,000 updates of 2 x 4,096 tokens, inverse square root from 0.005 after 2,000 steps; dropout 0.3 is the preset's.
RECIPE = (
    "--preset tiny --source_lang en --target_lang de --per_device_train_tokens 4096 --gradient_accumulation_steps 2 "
    "--learning_rate 0.005 --warmup_steps 2000 --max_steps 8000 --eval_steps 500 --save_steps 50 "
    f"--save_total_limit {AVERAGED} --load_best_model_at_end False"
).split()


def prepare(data_dir: Path, folder: Path) -> None:
    """Write the data without segmentation, and the tokenizer that segments it so, into a new folder.

    Raises:
        UserError: A file is missing.
    """
    sentences = {}
    for split in SPLITS:
        pairs = load_pairs(data_dir / split, *LANGUAGES)
        for language, side in zip(LANGUAGES, ("source", "target"), strict=True):
            sentences[f"{split}.{language}"] = pairs[side]
    codes = next((data_dir / name for name in ("code", "code.gz") if (data_dir / name).is_file()), data_dir / "code.gz")
    joined = {name: [line.replace("@@ ", "") for line in lines] for name, lines in sentences.items()}
    tokenizer = subword_nmt_tokenizer(read_lines(codes), chain(*(joined[f"train.{lang}"] for lang in LANGUAGES)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as parent:  # killed here, a run leaves nothing by the folder's name
        parts = Path(parent, folder.name)
        tokenizer.save_pretrained(parts)
        for name, lines in joined.items():
            (parts / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        parts.rename(folder)


def report(run_dir: Path, data: Path) -> None:
    """Average the last checkpoints, translate test.2016 with beam 5 and print both scores, and BLEU against minutes."""
    checkpoints = complete_checkpoints(run_dir)
    averaged, test = run_dir / "averaged", data / "test.2016"
    average_checkpoints(checkpoints[-AVERAGED:], averaged)
    predictions = f"{averaged}/test.2016.de"
    print("\nScored as published, on the tokens:")
    model = [
        "--model_name_or_path",
        str(averaged),
        "--test_file",
        str(test),
        "--source_lang",
        "en",
        "--target_lang",
        "de",
    ]
    search = ["--num_beams", "5", "--length_penalty", "1.0"]  # 1 is fairseq's default
    evaluate.main([*model, *search, "--bleu_tokenize", "none", "--output_file", predictions])
    print("\nScored as sacreBLEU does by default:")
    evaluate.main(["--predictions_file", predictions, "--references_file", f"{test}.de"])
    log = json.loads((checkpoints[-1] / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    print("\n| step | minutes | validation loss | validation BLEU (greedy) |\n|---|---|---|---|")
    for line in log:
        if "eval_bleu" in line:
            print(f"| {line['step']:,} | {line['minutes']:.1f} | {line['eval_loss']:.3f} | {line['eval_bleu']:.2f} |")
    print(f"\nThe model is in {averaged}, the curve in {run_dir / 'training.png'}")


def main(argv: list[str] | None = None) -> None:
    """Prepare the data, train, average and score."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the segmented data and its codes")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the run, new unless it is resumed")
    parser.add_argument("--seed", type=int, default=42, help="of weights, order and dropout")
    arguments, changes = parser.parse_known_args(argv)
    data, run_dir = arguments.output_dir / "data", arguments.output_dir / "run"
    averaged = run_dir / "averaged"
    if in_use(averaged):
        raise UserError(f"the run in {run_dir} is scored already; give another --output_dir, or remove {averaged}")
    print_header(torch.get_num_threads(), seed=arguments.seed)
    if not in_use(data):
        prepare(arguments.data_dir, data)
    files = ["--train_file", f"{data}/train", "--validation_file", f"{data}/valid", "--tokenizer_name", str(data)]
    train.main([*files, "--output_dir", str(run_dir), "--seed", str(arguments.seed), *RECIPE, *changes])
    report(run_dir, data)


if __name__ == "__main__":
    run(main)
