"""COMET (Rei et al. 2020) by its own program, `comet-score` of the package unbabel-comet.

unbabel-comet requires transformers below 5, so it can't be in one environment with this package. Its program runs in
an environment of its own, such as `uv tool install unbabel-comet` or `pipx install unbabel-comet` makes, and is found
on the PATH.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download

from ..errors import UserError
from .text_io import replace_line_breaks

PROGRAM = "comet-score"
COMET_MODEL = "Unbabel/wmt22-comet-da"


class Comet:
    """COMET's program with a model. Nothing is downloaded.

    Args:
        model: Id of a model on the Hub, which is in the cache already, or the path of a checkpoint (`.ckpt`).

    Attributes:
        signature: Model and versions.

    Raises:
        UserError: The program is not installed, or the model is not there.
    """

    def __init__(self, model: str = COMET_MODEL) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise UserError(
                f"COMET needs the program {PROGRAM} of the package unbabel-comet, which is not on the PATH; install it "
                "into an environment of its own with: uv tool install unbabel-comet"
            )
        self.program = program
        self.checkpoint, revision = _find_model(model)
        parts = {"model": model, "revision": revision, "refs": "1", "version": _find_version(program)}
        self.signature = "|".join(f"{name}:{value}" for name, value in parts.items() if value)

    def scores(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """Score each sentence; the mean is the score of a system.

        Args:
            sources: The sentences that were translated.
            hypotheses: Their translations.
            references: One reference for each.

        Raises:
            UserError: The program ends with an error, or gives something else than a score for each sentence.
        """
        with TemporaryDirectory(prefix="comet-") as folder:
            files = {
                option: Path(folder, option.strip("-")) for option in ("--sources", "--translations", "--references")
            }
            for path, lines in zip(files.values(), (sources, hypotheses, references), strict=True):
                path.write_text("".join(f"{replace_line_breaks(line)}\n" for line in lines), encoding="utf-8")
            result = Path(folder, "result.json")
            words = [self.program, "--model", self.checkpoint, "--gpus", str(int(torch.cuda.is_available()))]
            words += ["--quiet", "--only_system", "--to_json", str(result)]
            words += [word for option, path in files.items() for word in (option, str(path))]
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
            if done.returncode or not result.exists():
                last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
                raise UserError(f"{PROGRAM} ended with status {done.returncode}: {last.strip()}; check its environment")
            try:
                (rows,) = json.loads(result.read_text(encoding="utf-8")).values()
                found = [float(row["COMET"]) for row in rows]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{PROGRAM} wrote a result of another form than expected; update unbabel-comet"
                ) from error
        if len(found) != len(hypotheses):
            raise UserError(
                f"{PROGRAM} gave {len(found):,} scores for {len(hypotheses):,} sentences; update unbabel-comet"
            )
        return found


def _find_model(model: str) -> tuple[str, str]:
    """Return the path of a model's checkpoint, and its revision on the Hub or "".

    Raises:
        UserError: There is no such checkpoint, or the model is not in the cache.
    """
    if model.endswith(".ckpt"):
        if not Path(model).is_file():
            raise UserError(f"comet_model is {model}, and there is no such checkpoint; check the path")
        return model, ""
    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:  # not in the cache; no name of a repository
        raise UserError(
            f"the COMET model {model} is not in the cache of the Hub; download it with: hf download {model}"
        ) from error
    checkpoint = folder / "checkpoints" / "model.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{model} is no COMET model: it has no checkpoints/model.ckpt; name another comet_model")
    return str(checkpoint), folder.name


def _find_version(program: str) -> str:
    """Ask the interpreter of the program's environment for the version of unbabel-comet; "" if it does not say."""
    interpreter = shutil.which("python", path=str(Path(program).resolve().parent))
    if interpreter is None:
        return ""
    code = "from importlib.metadata import version; print(version('unbabel-comet'))"
    done = subprocess.run([interpreter, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
