"""The structs of the C interface: Python packs them with the layout that the headers assert."""

from __future__ import annotations

import re
import struct

import pytest

from sparsebert_kernels.cpu import build_native, encoder, native, pooling
from tests import wheel_smoke

HEADER = "\n".join((build_native.SOURCES / name).read_text() for name in ("native.h", "int8_call.h"))


def fields(name: str) -> list[str]:
    """Return the fields of a struct of the C interface, in order."""
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", HEADER, re.DOTALL)
    assert body is not None
    declarations = re.sub(r"//.*", "", body[1]).split(";")
    declared = [re.sub(r"^\s*(const )?\w+\*? ", "", each) for each in declarations if each.strip()]
    return [field for each in declared for field in each.split(", ")]


def offset(layout: struct.Struct, index: int) -> int:
    """Return the offset of a field: the layouts are packed without padding."""
    return struct.calcsize(layout.format[: index + 1])  # the first character is "="


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sb_weight", native._WEIGHT),
        ("sb_call", native._CALL),
        ("sb_encoder_call", encoder._ENCODER_CALL),
        ("sb_pool_call", pooling._POOL_CALL),
        ("sb_int8_weight", native._INT8_WEIGHT),
    ],
    ids=["weight", "call", "encoder_call", "pool_call", "int8_weight"],
)
class TestLayout:
    def test_has_one_code_per_field(self, name: str, layout: struct.Struct) -> None:
        assert len(fields(name)) == len(layout.format) - 1

    def test_has_the_size_that_the_header_asserts(self, name: str, layout: struct.Struct) -> None:
        (size,) = re.findall(rf"sizeof\({name}\) == (\d+)", HEADER)
        assert layout.size == int(size)

    def test_has_the_offsets_that_the_header_asserts(self, name: str, layout: struct.Struct) -> None:
        asserted = re.findall(rf"offsetof\({name}, (\w+)\) == (\d+)", HEADER)
        assert len(asserted) == 2
        for field, position in asserted:
            assert offset(layout, fields(name).index(field)) == int(position)


def test_both_sides_allow_the_same_number_of_weights() -> None:
    (number,) = re.findall(r"MAX_WEIGHTS = (\d+);", HEADER)
    assert int(number) == native.MAX_WEIGHTS


def test_the_interface_version_is_the_same_in_the_library_and_in_the_check_of_wheels() -> None:
    dispatch = (build_native.SOURCES / "dispatch.cpp").read_text()
    (version,) = re.findall(r"sb_abi_version\(\) { return (\d+); }", dispatch)
    assert int(version) == native.ABI_VERSION == wheel_smoke.ABI_VERSION


def test_the_check_of_wheels_packs_the_same_structs() -> None:
    assert wheel_smoke.CALL.format == native._CALL.format
    assert wheel_smoke.WEIGHT.format == native._WEIGHT.format


@pytest.mark.parametrize(
    ("name", "count", "layout", "positions"),
    [
        ("sb_layer", 6, encoder._LAYER, {"heads", "window"}),
        ("sb_ends", 2, encoder._ENDS, {"vocabulary", "final_epsilon"}),
    ],
    ids=["layer", "ends"],
)
def test_a_layer_is_weights_and_the_packed_rest(
    name: str, count: int, layout: struct.Struct, positions: set[str]
) -> None:
    weights, *rest = fields(name)
    assert weights == f"weights[{count}]"
    assert len(rest) == len(layout.format) - 1
    first = count * native._WEIGHT.size
    asserted = dict(re.findall(rf"offsetof\({name}, (\w+)\) == (\d+)", HEADER))
    assert positions == {*asserted}
    for field, position in asserted.items():
        assert first + offset(layout, rest.index(field)) == int(position)
    assert f"sizeof({name}) == {first + layout.size}" in HEADER
