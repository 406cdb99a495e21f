"""Small files that claim gigabytes, and tensors without values, cost one line that names the file."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.interop import read_ticket
from sparsebert.interop.bert_tickets import from_bert_tickets
from sparsebert.interop.movement_pruning import from_movement
from sparsebert.interop.nn_pruning import from_nn_pruning
from sparsebert.tickets.ticket import Ticket
from tests.interop.checkpoints import bert as checkpoint_bert
from tests.interop.checkpoints import movement_state, saved
from tests.interop.models import bert

KEY = "encoder.layer.0.attention.self.query"


def refused(call: Any, *names: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    (line,) = str(caught.value).splitlines()
    assert len(line) < 500
    for name in names:
        assert name in line
    return line


@pytest.fixture
def bounded() -> Any:
    """Whatever is made of a file, no gigabyte of it."""
    resource = pytest.importorskip("resource")
    pages = (
        int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    )
    if pages is None:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(6), torch.ones(6)], layout=layout)


TENSORS: dict[str, Any] = {
    "expanded": lambda: torch.ones(1).expand(2**15, 2**15),
    "expanded in the model's shape": lambda: torch.ones(1).expand(6, 6),
    "overlapping": lambda: torch.ones(70_000).as_strided((2**15, 2**15), (1, 1)),
    "meta": lambda: torch.ones(6, 6, device="meta"),
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "sparse": lambda: torch.ones(6, 6).to_sparse(),
    "compressed": lambda: torch.ones(6, 6).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(6, 6), 1.0, 0, torch.quint8),
    "complex": lambda: torch.ones(6, 6, dtype=torch.complex64),
    "bits": lambda: torch.ones(6, 6, dtype=torch.uint8).view(torch.bits8),
    "another shape": lambda: torch.ones(6, 7),
    "no matrix": lambda: torch.ones(2, 2, 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("table", [lambda state: state, lambda state: {"state_dict": state}])
def test_masks_without_values(bounded: None, tmp_path: Path, name: str, table: Any) -> None:
    torch.save(table({f"{KEY}.weight_mask": TENSORS[name]()}), tmp_path / "mask.pt")
    refused(lambda: read_ticket(tmp_path / "mask.pt", bert(layers=1)), "mask.pt", KEY)
    if name not in ("another shape", "no matrix"):
        refused(lambda: from_bert_tickets(tmp_path / "mask.pt"), "mask.pt", KEY, "must be a dense tensor")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TENSORS if "shape" not in name and name != "no matrix"])
def test_scores_and_weights_without_values(bounded: None, tmp_path: Path, name: str) -> None:
    for number, entry in enumerate((f"bert.{KEY}.mask_scores", f"bert.{KEY}.weight")):
        state = movement_state(checkpoint_bert())
        state[entry] = TENSORS[name]()
        folder = saved(tmp_path / f"m{number}", state, pruning_method="topK")
        refused(
            lambda folder=folder: from_movement(folder, threshold=0.5), f"m{number}", "must be a dense tensor"
        )
    refused(lambda: from_nn_pruning(folder), "m1", "must be a dense tensor")


@pytest.mark.parametrize("size", [10**12, 2**62])
def test_a_hidden_size_beyond_the_matrices(bounded: None, tmp_path: Path, size: int) -> None:
    state = checkpoint_bert().state_dict()
    folder = saved(tmp_path / "m", state, hidden_size=size, pruned_heads={"0": [1]})
    refused(lambda: from_nn_pruning(folder), "hidden_size in config.json is")


def test_an_archive_that_unpacks_to_more_than_its_size(bounded: None, tmp_path: Path) -> None:
    torch.save({f"{KEY}.weight_mask": torch.zeros(2**20)}, tmp_path / "whole.pt")
    whole = zipfile.ZipFile(tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "mask.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert (tmp_path / "mask.pt").stat().st_size < 2**14
    refused(lambda: from_bert_tickets(tmp_path / "mask.pt"), "mask.pt is refused", "compresses nothing")


def test_masks_in_memory() -> None:
    for mask in (nested(torch.strided).bool(), torch.ones(6, 6).bool().to_sparse()):
        refused(lambda mask=mask: Ticket({KEY: mask}), "must be a dense tensor")
    refused(lambda: Ticket({KEY: torch.ones(1).bool().expand(2**20, 2**20)}), "at most 4294967296 weights")


def npy(path: Path, header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> Path:
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes(version) + length + text + body)
    return path


def header(dtype: str, shape: str) -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["head_mask.npy", "smp.npy", "mlp_mask.npy"])
@pytest.mark.parametrize(
    "text",
    [
        header("|u1", f"({10**22},)"),
        header("<f8", f"({2**63 - 1}, 2)"),
        header("<f8", f"(0, {2**63 - 1})"),
        header("|u1", "(-5,)"),
        header("|u1", "(5.0,)"),
        header("|u1", "(True,)"),
        header("|u1", "((5,)"),
        header("|u1", "(" * 3000 + ")" * 3000),
        header("|O", "(2, 2)"),
        header("|V2147483647", "(2, 2)"),
        header("<U2000000000", "(2, 2)"),
        "{'descr': '|u1', 'shape': (5",
        "(" * 60_000,
        "\0\0",
        "",
    ],
    ids=range(15),
)
def test_headers_of_arrays(bounded: None, tmp_path: Path, name: str, text: str) -> None:
    path = npy(tmp_path / name, text)
    if name == "mlp_mask.npy":  # Read with the mask of the heads.
        path = tmp_path / "head_mask.npy"
        np.save(path, np.ones((1, 2)))
    refused(lambda: read_ticket(path, bert(layers=1)), name, "is not a usable .npy file")


@pytest.mark.parametrize("number", ["true", "0.5", '"1e999"', "[]", "null", "1e300"])
def test_numbers_of_heads(tmp_path: Path, number: str) -> None:
    (tmp_path / "heads_to_mask.json").write_text(json.dumps({"0": {"0": ["HEAD"]}}).replace('"HEAD"', number))
    refused(lambda: read_ticket(tmp_path / "heads_to_mask.json", bert(layers=1)), "heads_to_mask.json")
