"""Sparse layers where there are no kernels for them: in ONNX, and without the native library."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import SparseLinear, densify_

SCRIPT = """
import warnings
import torch
from sparsebert import SparseLinear
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    layers = [SparseLinear(torch.randn(16, 16), torch.rand(16, 16) > 0.5) for _ in range(2)]
    layers[0](torch.ones(2, 16))
print("\\n".join(str(each.message) for each in caught))
"""


def warned(**environment: str) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return process.stdout.split("\n")[:-1]


def test_a_missing_native_library_is_one_warning_when_layers_are_made() -> None:
    (message,) = warned(SPARSEBERT_NATIVE="/nowhere/native.so")
    assert message.startswith("the compiled CPU kernels are missing (")
    assert "`sparsebert env`" in message


def test_with_the_library_there_is_none() -> None:
    assert warned() == [""]


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("format", ["element", "vector", "dense"])
def test_an_export_to_onnx_points_to_densify(tmp_path: Path, format: str, dynamo: bool) -> None:
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    layer = SparseLinear(torch.randn(16, 16), torch.rand(16, 16) > 0.5, format=format)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    options: dict[str, Any] = {"dynamo": dynamo, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=r"sparsebert\.densify_\(model\) before the export"):
            torch.onnx.export(model, (torch.ones(2, 16),), tmp_path / "sparse.onnx", **options)
        if not dynamo:
            torch.onnx.export(densify_(model), (torch.ones(2, 16),), tmp_path / "dense.onnx", **options)
            assert (tmp_path / "dense.onnx").stat().st_size > 0
