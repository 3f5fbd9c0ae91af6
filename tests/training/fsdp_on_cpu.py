"""Runs a script under FSDP on CPUs: accelerate turns it on for GPUs only, though torch's FSDP works over gloo as well.

python -m torch.distributed.run --nproc_per_node 2 tests/training/fsdp_on_cpu.py scripts/train.py --fsdp ...
"""

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

_init = AcceleratorState.__init__


def init_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = init_with_fsdp
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
