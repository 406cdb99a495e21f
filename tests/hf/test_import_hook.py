"""``import sparsebert`` teaches transformers the format, whichever of the two is imported first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
KNOWN = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; print('sparsebert' in m)"


# The first also imports sparsebert twice.
@pytest.mark.parametrize(
    "before",
    [
        "import sparsebert, importlib; importlib.reload(sparsebert); import transformers.quantizers.auto",
        "import transformers.quantizers.auto, sparsebert",
    ],
    ids=["sparsebert first", "transformers first"],
)
def test_either_order_and_twice(before: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    command = [sys.executable, "-c", f"{before}; {KNOWN}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_the_registry_is_still_found_as_it_was() -> None:
    import inspect

    from transformers.quantizers import auto

    assert "def register_quantizer" in inspect.getsource(auto)
