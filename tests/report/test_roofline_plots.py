"""The modelled roofline: labelled as modelled, under the limits of the device that the records hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsebert.report.roofline_plots import modelled_figure, modelled_layers, modelled_pictures
from sparsebert.report.sections import KINDS

LIMITS = {"matmul": 100e12, "memory": 0.5e12, "l2": 2e12}


def layer(sparsity: float, us: float, **changes: Any) -> dict[str, Any]:
    weights = round((1 - sparsity) * 1024 * 1024)
    fields = {
        "kind": "roofline",
        "device": "A GPU",
        "source": "built-in figures",
        "limits": LIMITS,
        "layer": "QKV",
        "shape": [1024, 1024],
        "tokens": 1024,
        "activation": "none",
        "block": [64, 64],
        "sparsity": sparsity,
        "dense_us": 50.0,
        "dense_weight_bytes": 2 * 1024 * 1024,
        "weight_bytes": 2 * weights,
        "useful_weights": weights,
        "us": us,
        "bounds_us": {"l2": us},
        "bound": "l2",
        "configuration": {"block_m": 128},
        "programs_at_once": 1,
    }
    return fields | changes


def test_each_layer_stands_at_its_useful_rate_and_intensity_the_dense_one_once() -> None:
    layers = modelled_layers([layer(0.5, 20.0), layer(0.75, 10.0), layer(0.5, 5.0, block=[16, 64])])
    assert [each.series for each in layers] == ["dense", "50% sparse", "75% sparse"]
    dense, half, _ = layers
    moved = 2 * 1024 * 1024 * 3  # bf16: weights, inputs and outputs
    assert dense.intensity == pytest.approx(2 * 1024**3 / moved)
    assert dense.rate == pytest.approx(2 * 1024**3 / 50e-6)
    assert dense.possible == 100e12
    assert half.rate == pytest.approx(1024**3 / 20e-6)
    assert half.bound == "L2 cache"


def test_title_alt_and_caption_say_that_nothing_was_measured() -> None:
    (picture,) = modelled_pictures([layer(0.5, 20.0), layer(0.75, 10.0)])
    assert picture.title == "Modelled, not measured: layers in 64x64 blocks on A GPU"
    assert picture.alt == (
        "Modelled, not measured: layers in 64x64 blocks on A GPU. Useful TFLOP/s, and the median share of "
        "what memory and matrix units allow: dense 43 (median 43%); 50% sparse 54 (median 54%); 75% sparse "
        "54 (median 94%). The sparse layers are bound by: L2 cache (2)."
    )
    assert "nothing was measured" in picture.caption


def test_records_without_limits_have_tables_and_no_picture() -> None:
    old = layer(0.5, 20.0)
    del old["limits"]
    assert modelled_pictures([old]) == []
    assert KINDS["roofline"].pictures([old]) == []


def test_devices_have_a_picture_each() -> None:
    titles = [each.title for each in modelled_pictures([layer(0.5, 20.0), layer(0.5, 9.0, device="Another")])]
    assert [title.rpartition(" on ")[2] for title in titles] == ["A GPU", "Another"]


def test_the_limits_and_the_layers_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    layers = modelled_layers([layer(0.5, 20.0)])
    (axes,) = modelled_figure("title", LIMITS, layers).axes
    memory = np.asarray(axes.get_lines()[0].get_xydata())
    assert memory[1].tolist() == [200, 100]  # where the memory stops to be the limit
    assert memory[2][1] == 100
    assert [len(np.asarray(each.get_offsets())) for each in axes.collections] == [1, 1]
