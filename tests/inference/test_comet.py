"""COMET's program: what is missing is named, and what it answers is read. A stand-in has its place here."""

import json
import sys
from pathlib import Path

import pytest

from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.comet import Comet

# Scores a sentence by how many letters its translation has, in the form in which comet-score 2.2.7 writes its result.
PROGRAM = """\
#!{python}
import json, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
assert options["--gpus"] in "01" and options["--model"].endswith(".ckpt"), options
names = ("--sources", "--translations", "--references")
columns = [[line.strip() for line in open(options[name], encoding="utf-8").readlines()] for name in names]
rows = [{{"src": s, "mt": t, "ref": r, "COMET": len(t) / 10}} for s, t, r in zip(*columns, strict=True)]
{change}
json.dump({{options["--translations"]: rows}}, open(options["--to_json"], "w"))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a program on the PATH, and a checkpoint into the folder; returns the checkpoint."""

    def install(change: str = "") -> str:
        program = tmp_path / "comet-score"
        program.write_text(PROGRAM.format(python=sys.executable, change=change))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        checkpoint = tmp_path / "model.ckpt"
        checkpoint.touch()
        return str(checkpoint)

    return install


def test_a_score_for_each_sentence(install):
    comet = Comet(install())
    assert comet.scores(["a", "b\nc", ""], ["four", "", "a\u2028b"], ["a", "b", "c"]) == [0.4, 0.0, 0.3]
    assert comet.signature.startswith("model:") and "refs:1" in comet.signature


def test_a_missing_program_or_model_is_named(install, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="comet-score of the package unbabel-comet, which is not on the PATH"):
        Comet()
    install()
    for model, message in (
        ("Unbabel/wmt22-comet-da", "Unbabel/wmt22-comet-da is not in the cache .* hf download Unbabel/wmt22-comet-da"),
        ("no.ckpt", "no.ckpt, and there is no such checkpoint"),
        ("not a name/of a/model", "is not in the cache"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Comet(model)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.exit('CUDA is out of memory')", "ended with status 1: CUDA is out of memory"),
        ("sys.exit(0)", "ended with status 0: no message"),
        ("rows.pop()", "gave 1 scores for 2 sentences"),
        ("rows = [1, 2]", "wrote a result of another form"),
    ],
)
def test_what_the_program_can_do_wrong_is_one_sentence(install, change, message):
    comet = Comet(install(change))
    with pytest.raises(UserError, match=message) as error:
        comet.scores(["a", "b"], ["a", "b"], ["a", "b"])
    assert "\n" not in str(error.value)


def test_a_model_in_the_cache_has_its_revision_in_the_signature(install, monkeypatch, tmp_path):
    install()
    folder = Path(tmp_path, "snapshots", "0123abc")
    (folder / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr("vanilla_transformer.inference.comet.snapshot_download", lambda model, local_files_only: folder)
    with pytest.raises(UserError, match="me/other is no COMET model"):
        Comet("me/other")
    (folder / "checkpoints" / "model.ckpt").touch()
    comet = Comet("me/metric")
    assert comet.signature.startswith("model:me/metric|revision:0123abc|refs:1")
    assert json.loads(json.dumps(comet.scores(["a"], ["ab"], ["a"]))) == [0.2]
