"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for the GPUs people have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="torch brings no Triton on this platform")

HERE = Path(__file__).parent


def test_in_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", HERE / "interpreted.py"]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env={**kept, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


IN_HALF = {"hidden", "up", "y", "kept", "g", "saved", "scaled", "weight"}
IN_FP32 = {"z", "factor", "bias", "shift", "partial", "lora_A", "lora_B", "base", "projected", "mixed", "norm"}
ONE = {"z_o", "hidden_r", "up_r", "g_o", "saved_o", "weight_i", "lora_A_i", "lora_B_r"}
"""Strides of rows that lie one element after the other, which Triton builds in."""


def compiled(name: str, capability: int):
    """The kernel as it is launched in bf16 for a model, with a bias and z kept; no GPU is asked."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmdora.ops import kernels

    kernel = getattr(kernels, name)
    sides = kernels.BEFORE_8 if capability < 80 else kernels.SINCE_8
    blocks = {"BT": sides.t, "BO": sides.o, "BR": 32}
    if name == "row_norm_kernel":
        blocks = {"BO": 16, "BI": sides.i, "BR": 32, "PIECES": 2}
    if name == "scale_and_reduce_kernel":
        blocks = {"BT": 64, "BO": 128}
    constants = {argument: 1 for argument in ONE} | blocks
    signature, values, aligned = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        pointer = "*bf16" if argument in IN_HALF else "*fp32" if argument in IN_FP32 else None
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
            continue
        signature[argument] = pointer or ("fp32" if argument in ("scaling", "cancelled") else "i32")
        if signature[argument] != "fp32" and argument != "size_t":
            aligned[(place,)] = [["tt.divisibility", 16]]
    warps = 8 if name == "scale_and_reduce_kernel" else 4
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, values, aligned), target=target, options=options)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", ["compose_kernel", "scale_and_reduce_kernel", "row_norm_kernel"])
def test_compiles_for_a_gpu(name):
    """The interpreter takes what the compiler refuses. 99 KB of shared memory is what every GPU since 8.0 has."""
    built = compiled(name, 80)
    assert built.asm["cubin"] and built.metadata.shared <= 99 * 1024


@pytest.mark.parametrize("name", ["compose_kernel", "scale_and_reduce_kernel", "row_norm_kernel"])
def test_nothing_is_spilled_before_8(name, tmp_path):
    """A thread has 255 registers, and what does not fit goes to its stack, in memory."""
    from triton.backends import nvidia

    (built := tmp_path / "kernel.cubin").write_bytes(compiled(name, 75).asm["cubin"])
    tool = Path(str(nvidia.__file__)).parent / "bin" / "cuobjdump"
    used = subprocess.run([tool, "-res-usage", built], capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in used


def test_the_low_rank_product_is_on_tensor_cores():
    assert "wgmma.mma_async" in compiled("compose_kernel", 90).asm["ptx"]
