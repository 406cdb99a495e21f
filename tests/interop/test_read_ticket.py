"""``read_ticket``: the content of a file decides how it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sparsebert.interop import read_ticket
from sparsebert.interop.bert_tickets import to_bert_tickets
from sparsebert.interop.smp import to_smp
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.interop.models import bert


class TestAnyTicketFile:
    @pytest.fixture
    def ticket(self) -> Ticket:
        return prune(bert(), "random", sparsity=0.5)

    def test_each_kind_is_known_by_its_content(self, tmp_path: Path, ticket: Ticket) -> None:
        model = bert()
        ticket.save(tmp_path / "a")
        to_bert_tickets(ticket, tmp_path / "b")
        to_smp(ticket, tmp_path / "c", model)
        for name in "abc":
            assert read_ticket(tmp_path / name, model) == ticket
        assert read_ticket(tmp_path / "b") == ticket

    def test_ours_is_known_whatever_the_length_of_its_header(self, tmp_path: Path, ticket: Ticket) -> None:
        starts = set()
        for length in range(0, 256, 8):
            longer = Ticket(ticket.masks, metadata={"note": "x" * length})
            longer.save(tmp_path / "ticket")
            starts.add((tmp_path / "ticket").read_bytes()[0])
            assert read_ticket(tmp_path / "ticket") == ticket
        assert 0x80 in starts, "the first byte of a pickle"

    def test_an_array_of_bits_needs_its_model(self, tmp_path: Path, ticket: Ticket) -> None:
        to_smp(ticket, tmp_path / "mask.npy", bert())
        with pytest.raises(ValueError, match="without matrix names or shapes; pass the model"):
            read_ticket(tmp_path / "mask.npy")

    @pytest.mark.parametrize("kind", ["ours", "mask.pt", "mask.npy"])
    def test_a_ticket_of_another_model_is_refused(self, tmp_path: Path, ticket: Ticket, kind: str) -> None:
        save = {
            "ours": lambda path: ticket.save(path),
            "mask.pt": lambda path: to_bert_tickets(ticket, path),
            "mask.npy": lambda path: to_smp(ticket, path, bert()),
        }
        save[kind](tmp_path / kind)
        with pytest.raises(ValueError, match=r"ticket of another model|encoder matrices of BertModel need"):
            read_ticket(tmp_path / kind, bert(layers=2))

    def test_what_is_no_ticket_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("mask")
        with pytest.raises(ValueError, match="not a usable ticket file"):
            read_ticket(tmp_path / "text")
        with pytest.raises(ValueError, match="is a folder"):
            read_ticket(tmp_path)
        with pytest.raises(FileNotFoundError):
            read_ticket(tmp_path / "none")


@pytest.mark.parametrize("writer", [to_bert_tickets, lambda t, path: to_smp(t, path, bert())])
def test_what_was_there_stays_until_the_new_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any
) -> None:
    path = tmp_path / "mask"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer(prune(bert(), "random", sparsity=0.5), path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["mask"]
