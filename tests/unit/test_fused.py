"""The kernels for a GPU: what they compute in Triton's interpreter, that they compile, and when they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet.moments import fused

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)

pytest.importorskip("triton", reason="Triton comes with torch's builds for CUDA alone")


def test_kernels_agree_with_float64_in_every_layout_and_spoil_what_is_not_finite() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.interpreted"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    worst = json.loads(result.stdout.splitlines()[-1])
    assert worst["kernels"] < 2e-7 and worst["accumulators"] < 2e-7
    assert worst["refused"] == [True] * 4


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("contiguous", "block", "dtype"), [(1, 64, "fp32"), (2, 64, "fp16"), (0, 16, "bf16")])
def test_kernels_compile_to_products_of_tensor_cores_without_a_gpu(
    contiguous: int, block: int, dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared memory is that of the smallest multiprocessor with TF32, 99 KiB."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from eigendet.moments import kernels

    pointers = {"samples": f"*{dtype}", "shift": "*fp32", "out": "*fp64"}
    constants = {"CONTIGUOUS": contiguous, "BLOCK": block, "STEP": 32, "SLAB": fused.SLAB}
    types = {
        name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernels.gram_kernel.arg_names
    }
    source = ASTSource(fn=kernels.gram_kernel, signature=types, constexprs=constants)
    options = {"num_warps": 8 if block == 64 else 4}
    compiled: Any = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert "f32.tf32.tf32" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= 99 * 2**10


def test_positions_are_joined_where_one_stride_does_for_both() -> None:
    image = torch.zeros(2, 8, 5, 6).transpose(0, 1)
    assert fused._layout_of(image) == fused._Layout((1, 2, 30), (0, 240, 1), 30)
    assert fused._layout_of(image[:, :, :3]) == fused._Layout((1, 2, 18), (0, 240, 1), 30)
    assert fused._layout_of(image[..., :4]) == fused._Layout((2, 5, 4), (240, 6, 1), 30)
    assert fused._layout_of(torch.zeros(8, 2, 3, 4, 5)[:, :, ::2, ::2, ::2]) is None
    assert [fused._layout_of(part).contiguous for part in (image, image[..., ::2], torch.zeros(9, 8).T)] == [1, 0, 2]  # type: ignore[union-attr]


def test_a_device_for_which_they_are_not_meant_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_trials", lambda device: pytest.fail("tried"))
    assert not fused.is_right.__wrapped__(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not fused.is_right.__wrapped__(GPU)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([1e-7, 2e-7], ""),
        ([1e-7, 2e-6], "are off by"),
        ([1e-7, float("nan")], "are off by"),
        ([RuntimeError("out of resource: shared memory\nmore")], "since Triton raises: out of resource: shared memory"),
    ],
)
def test_kernels_that_are_wrong_or_fail_on_a_device_are_not_used_there_and_that_is_said(
    errors: list[Any], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def error(outcome: Any) -> float:
        if isinstance(outcome, Exception):
            raise outcome
        return float(outcome)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fused, "_trials", lambda device: errors)
    monkeypatch.setattr(fused, "_error", error)
    assert fused.is_right.__wrapped__(GPU) == (not message)
    assert message in caplog.text and (not message or "observing on cuda:0 in plain torch" in caplog.text)
