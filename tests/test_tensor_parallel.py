"""The tensor-parallel plan, and two processes that share one model."""

import inspect
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers import ragged_batch, small_model
from torch.distributed.tensor import distribute_tensor

tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@tied_and_untied
def test_the_tensor_parallel_plan_names_every_matrix(tied):
    """A pattern that matches no module is not applied, with no more than a warning."""
    model = small_model(tie_word_embeddings=tied)

    def pattern(name: str) -> str:
        return ".".join("*" if part.isdigit() else part for part in name.split("."))

    modules = {pattern(name): module for name, module in model.named_modules()}
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    assert linear <= set(model.tp_plan)
    # A tied output layer is split by the vocabulary, so its other name must be as well.
    assert ("model.shared" in model.tp_plan) or not tied
    assert set(model.tp_plan) - set(modules) == (set() if tied else {"model.shared"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif("src_data_rank" not in inspect.signature(distribute_tensor).parameters, reason="needs torch 2.7")
def test_two_processes_with_half_the_weights_each_give_the_same_logits(tmp_path):
    batch = ragged_batch()
    folders = []
    for tied in (True, False):
        model = small_model(tie_word_embeddings=tied)
        with torch.no_grad():
            expected = model(**batch).logits
        sequences = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6)
        folders.append(tmp_path / ("tied" if tied else "untied"))
        model.save_pretrained(folders[-1])
        torch.save({"batch": batch, "logits": expected, "sequences": sequences}, folders[-1] / "expected.pt")
    script = textwrap.dedent("""
        import os, sys
        import torch
        from torch.distributed.tensor import DTensor
        from transformers.distributed import DistributedConfig
        from vanilla_transformer import VanillaTransformerForConditionalGeneration

        rank = 0 if os.fork() else 1
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        rendezvous, *folders = sys.argv[1:]
        torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
        for folder in folders:
            model = VanillaTransformerForConditionalGeneration.from_pretrained(
                folder, distributed_config=DistributedConfig(tp_plan="auto", tp_size=2)
            )
            for name, parameter in model.named_parameters():
                assert isinstance(parameter, DTensor) or ".layers." not in name or parameter.dim() == 1, name
            saved = torch.load(f"{folder}/expected.pt")
            batch = saved["batch"]
            with torch.no_grad():
                logits = model(**batch).logits
            torch.testing.assert_close(logits, saved["logits"], rtol=1e-4, atol=1e-4)
            arguments = {"attention_mask": batch["attention_mask"], "max_new_tokens": 6}
            assert torch.equal(model.generate(batch["input_ids"], **arguments), saved["sequences"])
        torch.distributed.destroy_process_group()
        if rank == 0:
            sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "rendezvous"), *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
