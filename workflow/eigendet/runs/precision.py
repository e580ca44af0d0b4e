"""The arithmetic that a network runs in, so that what is measured of it does not depend on the device.

On a GPU torch lets cuDNN convolve in TF32 unless told otherwise, which moves feature maps by about 3e-4 of their size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32 inside the context: without TF32, bfloat16 or autocast, whatever the process has chosen.

    What was chosen holds again afterwards, whichever of torch's two interfaces it was chosen by.

    >>> torch.backends.cudnn.conv.fp32_precision
    'tf32'
    >>> with full_float32():
    ...     torch.backends.cudnn.conv.fp32_precision
    'ieee'
    """
    backends: Any = torch.backends
    cudnn = [backends.cudnn.conv, backends.cudnn.rnn]
    others = [backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul]
    operations = cudnn + others
    before = [operation.fp32_precision for operation in operations]
    _set_all(operations, "ieee")
    # The older interface keeps a state of its own, and reading it fails where the two disagree.
    matmul, tf32 = torch.get_float32_matmul_precision(), _cudnn_may_use_tf32()
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    _set_all(operations, "ieee")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = tf32
        # What reads the same as "none" follows a choice for all operations; cuDNN's have one of their own at the start.
        _set_all(others, "none")
        for operation, precision in zip(operations, before, strict=True):
            if operation in cudnn or operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _set_all(operations: list[Any], precision: str) -> None:
    for operation in operations:
        operation.fp32_precision = precision


def _cudnn_may_use_tf32() -> bool:
    """Return the older setting, while the newer one is "ieee"."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it disagrees with "ieee"
        return True
