"""DeepSpeed trains on the CPU; with ZeRO-3 it takes the parameters out of the modules between their uses."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vanilla_transformer

PROGRAM = """
import json, sys
import torch
import deepspeed
from pairs import make_batch, make_labels, make_pair, translations

stage, tied = int(sys.argv[1]), sys.argv[2] == "tied"
# The collectives of shared memory would be compiled here, for many processes; this is one.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo")
batch = make_batch(3)
labels = make_labels(batch)
results = []
for model in make_pair(tie_word_embeddings=tied):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed_positions" not in name)
    settings = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.03)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    losses = []
    for _ in range(4):
        loss = engine(**batch, labels=labels).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    engine.eval()
    found = {}
    for search, (ids, scores) in translations(engine.module, batch).items():
        found[search] = (ids.tolist(), None if scores is None else scores.tolist())
    results.append({"losses": losses, "translations": found})
print("RESULTS " + json.dumps(results))
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(("stage", "tied"), [(0, "tied"), (2, "untied"), (3, "tied"), (3, "untied")])
def test_training_and_the_translations_after_it_are_those_of_marian(tmp_path, stage, tied):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    here, source = Path(__file__).parent, Path(vanilla_transformer.__file__).parents[1]
    environment = {
        "PYTHONPATH": f"{here}:{here.parent}:{source}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, program, str(stage), tied], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    ours, marian = json.loads(ended.stdout.rpartition("RESULTS ")[2])
    assert marian["losses"][-1] < marian["losses"][0]
    assert ours["losses"] == pytest.approx(marian["losses"], rel=1e-4)
    for search, (ids, scores) in marian["translations"].items():
        assert ours["translations"][search][0] == ids, search
        if scores is not None:
            assert ours["translations"][search][1] == pytest.approx(scores, rel=1e-3, abs=1e-4), search
