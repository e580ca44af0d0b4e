"""What a host asks of a device, and waits for; counted on the CPU, where the same operations are dispatched."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITED_FOR = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero")


class Questions(TorchDispatchMode):
    """Notes the operations whose result a host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITED_FOR:
            self.asked.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
