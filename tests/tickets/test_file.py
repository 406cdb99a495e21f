"""The ticket file: round trips, a layout that other programs can read, and refusals of everything else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from sparsebert.bert import canonical_key
from sparsebert.tickets import file
from sparsebert.tickets.file import TicketContents
from sparsebert.tickets.ticket import Ticket

KEY = "encoder.layer.0.output.dense"
OTHER = "encoder.layer.1.attention.self.query"
DESCRIPTION = "sparsebert.ticket"
DIGEST = "sparsebert.sha256"

names = st.from_regex(r"[\w-]{1,8}(\.[\w-]{1,8}){0,3}", fullmatch=True).filter(
    lambda name: canonical_key(name) == name
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    masks, biases, removed = {}, {}, []
    for key in draw(st.lists(names, max_size=4, unique=True)):
        shape = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        masks[key] = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        if draw(st.booleans()):
            biases[key] = torch.rand(shape[0], generator=generator) < 0.5
        if not any(masks[other].any() for other in masks if f"{other}.".startswith(f"{key}.")):
            removed.append(key)
    removed = [
        name for name in removed if not any(masks[k].any() for k in masks if f"{k}.".startswith(f"{name}."))
    ]
    return Ticket(masks, bias_masks=biases, removed=removed, metadata={"seed": 1, "note": draw(json_values)})


def example() -> Ticket:
    mask = torch.arange(30).view(5, 6) % 3 == 0
    return Ticket(
        {OTHER: mask, KEY: ~mask},
        bias_masks={KEY: mask[0, :5]},
        metadata={"method": "magnitude", "seed": 7, "model": {"id": "some-bert"}, "history": [{"round": 1}]},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ticket"


class TestRoundTrip:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(ticket=tickets())
    def test_what_was_saved_is_loaded(self, path: Path, ticket: Ticket) -> None:
        ticket.save(path)
        loaded = Ticket.load(path)
        assert loaded == ticket
        assert loaded.metadata == ticket.metadata
        assert (list(loaded.masks), loaded.removed) == (list(ticket.masks), ticket.removed)
        assert (loaded.sparsity, loaded.layer_sparsity) == (ticket.sparsity, ticket.layer_sparsity)

    def test_equal_tickets_make_equal_files(self, path: Path, tmp_path: Path) -> None:
        example().save(path)
        Ticket.load(path).save(tmp_path / "again.ticket")
        assert path.read_bytes() == (tmp_path / "again.ticket").read_bytes()

    def test_the_loaded_masks_can_be_written_to(self, path: Path) -> None:
        example().save(path)
        loaded = Ticket.load(path)
        loaded.masks[KEY].fill_(True)
        assert loaded.layer_sparsity[KEY] == 0

    def test_the_metadata_says_which_libraries_made_it(self, path: Path) -> None:
        example().save(path)
        assert Ticket.load(path).metadata["versions"]["torch"] == torch.__version__

    def test_prefixes_that_earlier_versions_kept(self, path: Path) -> None:
        ticket = example()
        key = "encoder.layer.0.output.dense"
        masks = {f"model.{key}": ticket.masks[OTHER]}
        contents = TicketContents(
            masks, {}, (), {}, ticket.layer_sparsity[OTHER], {f"model.{key}": ticket.layer_sparsity[OTHER]}
        )
        file.write(path, contents)
        assert list(Ticket.load(path).masks) == [key]


class TestLayout:
    def test_safetensors_reads_one_packed_entry_a_mask(self, path: Path) -> None:
        safetensors = pytest.importorskip("safetensors")
        ticket = example()
        ticket.save(path)
        with safetensors.safe_open(path, "np") as file:
            assert set(file.keys()) == {f"{KEY}.weight", f"{OTHER}.weight", f"{KEY}.bias"}
            description = json.loads(file.metadata()[DESCRIPTION])
            for key, mask in ticket.masks.items():
                bits = file.get_tensor(f"{key}.weight")
                assert bits.nbytes == 4
                assert np.array_equal(np.unpackbits(bits, count=30).reshape(5, 6), mask.numpy())
        assert description["version"] == 1
        assert description["sparsity"] == ticket.sparsity
        assert description["layer_sparsity"] == ticket.layer_sparsity
        assert description["metadata"] == ticket.metadata

    def test_a_file_that_safetensors_wrote_anew_loads(self, path: Path) -> None:
        safetensors = pytest.importorskip("safetensors")
        numpy = pytest.importorskip("safetensors.numpy")
        example().save(path)
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
        numpy.save_file(numpy.load_file(path), path, metadata=metadata)
        assert Ticket.load(path) == example()

    def test_bert_base_takes_a_bit_a_weight_and_loads_at_once(self, path: Path) -> None:
        shapes = {
            "output": (768, 768),
            "up": (3072, 768),
            "down": (768, 3072),
            "q": (768,) * 2,
            "k": (768,) * 2,
        }
        masks = {
            f"encoder.layer.{i}.{name}": torch.rand(shape) < 0.3
            for i in range(12)
            for name, shape in (shapes | {"v": (768, 768)}).items()
        }
        Ticket(masks).save(path)
        assert sum(mask.numel() for mask in masks.values()) == 84_934_656
        assert path.stat().st_size < 84_934_656 // 8 + 30_000
        # Of the processor, not of the clock: other work may be going on.
        seconds = []
        for _ in range(3):
            start = time.process_time()
            Ticket.load(path)
            seconds.append(time.process_time() - start)
        assert min(seconds) < 0.3


class TestSaving:
    def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        example().save(path)
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            (example() & example()).save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_a_missing_folder_is_named_and_no_file_of_passage(self, path: Path) -> None:
        target = path.parent / "nowhere" / "ticket.safetensors"
        with pytest.raises(FileNotFoundError) as refusal:
            example().save(target)
        assert str(refusal.value) == f"cannot write {target}: the folder {target.parent} does not exist"

    def test_a_folder_in_its_place_is_named_and_no_file_of_passage(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(IsADirectoryError) as refusal:
            example().save(path)
        assert str(refusal.value) == f"cannot write {path}: it is a folder"
        assert os.listdir(path.parent) == [path.name]

    def test_the_file_appears_whole_under_the_umask(self, path: Path) -> None:
        example().save(path)
        assert os.listdir(path.parent) == [path.name]
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_metadata_that_no_reader_would_accept_is_refused(self, path: Path) -> None:
        mask = torch.ones(1, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match="metadata is too large"):
            Ticket({KEY: mask}, metadata={"note": "x" * 2**20}).save(path)
        assert os.listdir(path.parent) == []


def build(description: Any, entries: dict[str, Any], payload: bytes, **strings: Any) -> bytes:
    """A file with a right digest, whatever else may be wrong with it."""
    text = description if isinstance(description, str) else json.dumps(description)
    digest = hashlib.sha256(text.encode() + payload).hexdigest()
    header = json.dumps({"__metadata__": {DESCRIPTION: text, DIGEST: digest, **strings}, **entries}).encode()
    return len(header).to_bytes(8, "little") + header + payload


def parts() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Description, entries and payload of a good file of one 2 x 4 mask."""
    description = {
        "version": 1,
        "masks": {KEY: [2, 4]},
        "bias_masks": {},
        "removed": [],
        "metadata": {},
        "sparsity": 0.5,
        "layer_sparsity": {KEY: 0.5},
    }
    return description, {f"{KEY}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\xa5"


Forge = Callable[..., bytes]


def described(**changes: Any) -> Forge:
    return lambda description, entries, payload: build(description | changes, entries, payload)


def entry(**changes: Any) -> Forge:
    return lambda description, entries, payload: build(
        description, {f"{KEY}.weight": entries[f"{KEY}.weight"] | changes}, payload
    )


def sized(shape: list[int], size: int) -> Forge:
    claim = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    return lambda description, entries, payload: build(
        description | {"masks": {KEY: shape}}, {f"{KEY}.weight": claim}, payload
    )


def raw(header: bytes, length: int | None = None) -> Forge:
    return lambda *_: (len(header) if length is None else length).to_bytes(8, "little") + header


def half_a_character(description: dict[str, Any], entries: dict[str, Any], payload: bytes) -> bytes:
    text = json.dumps(description).replace('"metadata": {}', '"metadata": {"note": "\ud800"}')
    header = json.dumps({"__metadata__": {DESCRIPTION: text, DIGEST: ""}, **entries}).encode()
    return raw(header)() + payload


HOSTILE: dict[str, tuple[Forge, str]] = {
    "empty": (lambda *_: b"", "header is truncated"),
    "header longer than the file": (raw(b"{}", 2**63), "header is truncated"),
    "header of 2 MiB": (raw(b" " * 2**21), "at most 1048576 are allowed"),
    "header that is not text": (raw(b"\xff\xfe"), "can't decode byte"),
    "header that is not JSON": (raw(b"{"), "header is not JSON"),
    "header that is a list": (raw(b"[]"), "header is not a JSON object"),
    "header nested deeply": (raw(b"[" * 100_000), "nested too deeply"),
    "number of 10000 digits": (raw(b"9" * 10_000), "beyond the range of numbers"),
    "name that stands twice": (raw(b'{"a": 1, "a": 1}'), "its header repeats a name"),
    "no metadata": (raw(b"{}"), "__metadata__ is not a table of strings"),
    "metadata that is a list": (raw(b'{"__metadata__": []}'), "__metadata__ is not a table of strings"),
    "metadata of numbers": (raw(b'{"__metadata__": {"a": 1}}'), "__metadata__ is not a table of strings"),
    "somebody else's safetensors": (raw(b'{"__metadata__": {"format": "pt"}}'), "without a ticket"),
    "description that is not JSON": (lambda d, e, p: build("{", e, p), "description is not JSON"),
    "description of NaN": (lambda d, e, p: build('{"version": NaN}', e, p), "its description contains NaN"),
    "description with a name twice": (
        lambda d, e, p: build('{"version": 1, "version": 1}', e, p),
        "its description repeats a name",
    ),
    "half a character": (half_a_character, "surrogates not allowed"),
    "newer version": (described(version=2), "it was written by a newer sparsebert .format 2"),
    "newer version with other fields": (
        lambda d, e, p: build({"version": 9}, e, p),
        "written by a newer sparsebert .format 9",
    ),
    "version that is a text": (described(version="1"), "must be a number from 1 to 1, got '1'"),
    "version that is a bool": (described(version=True), "must be a number from 1 to 1, got True"),
    "version zero": (described(version=0), "must be a number from 1 to 1, got 0"),
    "field too many": (described(extra=1), "has an unknown field 'extra'"),
    "field over several lines": (described(**{"a\nb": 1}), r"has an unknown field 'a\\nb'"),
    "field of a thousand letters": (described(**{"a" * 1000: 1}), r"has an unknown field 'a{79}\.\.\."),
    "masks that are a list": (described(masks=[]), "masks must be a JSON object"),
    "removed that is a text": (described(removed="abc"), "removed must be a JSON array"),
    "removed that is no name": (described(removed=[3]), "3 is not a module path"),
    "removed that keeps weights": (described(removed=[KEY]), "still keeps weights"),
    "metadata that is a text": (described(metadata="abc"), "metadata must be a JSON object"),
    "metadata of another type": (described(metadata={"seed": []}), "'seed' must be of type int"),
    "float offsets": (entry(data_offsets=[0.0, 1.0]), "has the entry"),
    "float size": (entry(shape=[1.0]), "has the entry"),
    "bool offset": (entry(data_offsets=[False, True]), "has the entry"),
    "sparsity that is whole": (
        described(sparsity=0),
        "a sparsity must be a number with a decimal point, got 0",
    ),
    "sparsity that is a bool": (described(sparsity=True), "must be a number with a decimal point, got True"),
    "sparsity of a matrix that is whole": (described(layer_sparsity={KEY: 1}), "with a decimal point, got 1"),
    "sparsity beyond numbers": (lambda d, e, p: build('{"sparsity": 1e999}', e, p), "contains 1e999"),
    "seed that is a float": (described(metadata={"seed": 7.0}), "'seed' must be of type int"),
    "block of floats": (
        described(metadata={"block_size": [4.0, 1]}),
        "'block_size' must be whole numbers, got 4.0",
    ),
    "float number of matrices": (
        described(metadata={"model": {"linears": 72.0}}),
        "'model.linears' must be whole numbers, got 72.0",
    ),
    "another sparsity": (described(sparsity=0.4), "do not have the sparsities that it states"),
    "sparsity that is a text": (described(sparsity="0.5"), "do not have the sparsities that it states"),
    "another sparsity of a matrix": (
        described(layer_sparsity={KEY: 0.4}),
        "do not have the sparsities that it states",
    ),
    "bias mask without its matrix": (
        lambda d, e, p: build(
            d | {"bias_masks": {OTHER: [8]}},
            {
                f"{KEY}.weight": e[f"{KEY}.weight"],
                f"{OTHER}.bias": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
            },
            p + b"\xff",
        ),
        "needs a weight mask of the same key",
    ),
    "odd name": (described(masks={"a b": [2, 4]}), "'a b' is not a module path"),
    "name with a wrapper": (
        lambda d, e, p: build(
            d | {"masks": {f"bert.{KEY}": [2, 4]}, "layer_sparsity": {f"bert.{KEY}": 0.5}},
            {f"bert.{KEY}.weight": e[f"{KEY}.weight"]},
            p,
        ),
        "do not have the sparsities that it states",
    ),
    "shape of one size": (described(masks={KEY: [8]}), "must have a shape of 2 positive sizes"),
    "shape of three sizes": (described(masks={KEY: [2, 2, 2]}), "must have a shape of 2 positive sizes"),
    "shape of zero": (described(masks={KEY: [0, 8]}), "must have a shape of 2 positive sizes"),
    "negative shape": (described(masks={KEY: [-2, -4]}), "must have a shape of 2 positive sizes"),
    "shape of fractions": (described(masks={KEY: [2.0, 4]}), "must have a shape of 2 positive sizes"),
    "shape that is a text": (described(masks={KEY: "24"}), "must have a shape of 2 positive sizes"),
    "shape with more bits": (described(masks={KEY: [4, 4]}), "has the entry .*, its shape needs"),
    "terabytes of bits": (sized([2**22, 2**22], 2**41), "more than 4294967296 weights in total"),
    "one size beyond all": (sized([2**80, 1], 2**77), "must have a shape of 2 positive sizes"),
    "gigabytes of bits": (sized([2**16, 2**15], 2**28), "bytes, its masks need"),
    "many large masks": (
        described(masks={f"a.{i}": [2**16, 2**15] for i in range(9)}),
        "more than 4294967296 weights in total",
    ),
    "entry of floats": (entry(dtype="F32"), "has the entry .*, its shape needs"),
    "entry of another shape": (entry(shape=[2]), "has the entry .*, its shape needs"),
    "entry elsewhere": (entry(data_offsets=[1, 2]), "has the entry .*, its shape needs"),
    "entry before the file": (entry(data_offsets=[-1, 0]), "has the entry .*, its shape needs"),
    "entry that is null": (
        lambda d, e, p: build(d, {f"{KEY}.weight": None}, p),
        "has the entry .*, its shape needs",
    ),
    "entry with more to say": (entry(more=1), "has the entry .*, its shape needs"),
    "mask without an entry": (lambda d, e, p: build(d, {}, p), "has a shape without bits"),
    "entry without a mask": (
        lambda d, e, p: build(d, e | {"z": e[f"{KEY}.weight"]}, p),
        "has bits without a shape",
    ),
    "bits beyond the last": (
        lambda d, e, p: build(
            d | {"masks": {KEY: [1, 4]}, "sparsity": 0.5, "layer_sparsity": {KEY: 0.5}}, e, b"\xa5"
        ),
        "has bits set beyond its last weight",
    ),
    "too short": (lambda d, e, p: build(d, e, p)[:-1], "bytes, its masks need"),
    "too long": (lambda d, e, p: build(d, e, p) + b"\0", "bytes, its masks need"),
    "another digest": (lambda d, e, p: build(d, e, p, **{DIGEST: "0" * 64}), "do not match their digest"),
    "other bits": (lambda d, e, p: build(d, e, p)[:-1] + b"\xa6", "do not match their digest"),
}


class TestHostileFiles:
    def test_the_file_that_the_others_are_made_from_is_good(self, path: Path) -> None:
        path.write_bytes(build(*parts()))
        assert Ticket.load(path) == Ticket(
            {KEY: torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)}
        )

    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_in_one_line_that_names_the_file(self, path: Path, name: str) -> None:
        forge, message = HOSTILE[name]
        path.write_bytes(forge(*parts()))
        with pytest.raises(ValueError, match=message) as refused:
            Ticket.load(path)
        assert str(refused.value).startswith(f"{path} is not a usable ticket file: ")
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < len(str(path)) + 500

    @pytest.mark.parametrize("name", ["gigabytes of bits", "terabytes of bits", "many large masks"])
    def test_costs_no_memory(self, path: Path, name: str) -> None:
        path.write_bytes(HOSTILE[name][0](*parts()))
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="not a usable ticket file"):
                Ticket.load(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_a_sparse_file_of_terabytes_costs_no_memory_either(self, path: Path) -> None:
        header = build(*parts())[:-1]
        path.write_bytes(header)
        os.truncate(path, 2**40)
        with pytest.raises(ValueError, match="it has 1099511627776 bytes, its masks need"):
            Ticket.load(path)

    def test_a_file_cut_off_anywhere_is_refused(self, path: Path) -> None:
        example().save(path)
        whole = path.read_bytes()
        # Every length near the ends of header and file, and every seventh in between.
        ends = len(whole) - 16
        for length in {*range(0, ends, 7), *range(16), *range(ends, len(whole))}:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="not a usable ticket file"):
                Ticket.load(path)

    @pytest.mark.parametrize(
        "bits",
        [
            pytest.param(lambda position: [position % 8], id="one in every byte"),
            pytest.param(lambda _: range(8), id="all", marks=pytest.mark.slow),
        ],
    )
    def test_flipped_bits_are_refused_or_change_nothing(
        self, path: Path, bits: Callable[[int], Iterable[int]]
    ) -> None:
        expected = example()
        expected.save(path)
        whole = path.read_bytes()
        flips = [(position, bit) for position in range(len(whole)) for bit in bits(position)]
        refused = 0
        for position, bit in flips:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert Ticket.load(path) == expected
            except ValueError:
                refused += 1
        assert refused > 7.9 / 8 * len(flips)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_bytes_put_in_taken_out_or_changed_are_refused_or_change_nothing(
        self, path: Path, data: Any
    ) -> None:
        example().save(path)
        whole = path.read_bytes()
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 12)))
        path.write_bytes(whole[:start] + data.draw(st.binary(max_size=12)) + whole[end:])
        with contextlib.suppress(ValueError):
            assert Ticket.load(path) == example()

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(header=json_values | st.text(max_size=40), payload=st.binary(max_size=20))
    def test_any_other_header_is_refused(self, path: Path, header: Any, payload: bytes) -> None:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
        with pytest.raises(ValueError, match="not a usable ticket file"):
            Ticket.load(path)

    def test_what_is_no_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Ticket.load(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe")
        for name in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(ValueError, match="is not a regular file"):
                Ticket.load(name)
