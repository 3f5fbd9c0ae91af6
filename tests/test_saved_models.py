"""Folders saved at commit 7ea5bdf, before the package was rearranged, give the logits of the code inside them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import HIDE_THE_PACKAGE
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import vanilla_transformer

SAVED = Path(__file__).parent / "saved_at_7ea5bdf"
INPUTS = {
    "input_ids": torch.tensor([[82, 68, 85, 2], [77, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "decoder_input_ids": torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]]),
}
BY_THE_CODE_INSIDE = """
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained(".", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
inputs = {name: torch.tensor(ids) for name, ids in INPUTS.items()}
with torch.inference_mode():
    save_file({"logits": model(**inputs).logits}, sys.argv[1])
"""


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_old_folder_gives_the_same_logits_by_the_package_and_by_its_own_code(name, tmp_path):
    """The last bit differs from processor to processor, so nothing is compared with stored logits.

    The code files, the same in both folders, are kept once.
    """
    folder = Path(shutil.copytree(SAVED / name, tmp_path / name))
    shutil.copytree(SAVED / "code", folder, dirs_exist_ok=True)
    inputs = f"INPUTS = { {key: ids.tolist() for key, ids in INPUTS.items()} }\n"
    command = [sys.executable, "-c", HIDE_THE_PACKAGE + inputs + BY_THE_CODE_INSIDE, str(tmp_path / "logits")]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert type(model) is vanilla_transformer.VanillaTransformerForConditionalGeneration
    with torch.inference_mode():
        assert torch.equal(model(**INPUTS).logits, load_file(tmp_path / "logits")["logits"])
