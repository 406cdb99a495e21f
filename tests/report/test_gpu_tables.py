"""What was measured on a GPU: marked with its name, and never mixed up with a dry run."""

import pytest

from sparsebert.report.gpu_goals import GOALS
from sparsebert.report.gpu_plots import marks, roofline_figure, roofline_pictures, roofline_plot
from sparsebert.report.gpu_tables import failure_tables, gpu_tables
from sparsebert.report.plots import COLOURS

DEVICE = {"name": "NVIDIA H200", "dry_run": False, "l2_bytes": 60e6}
ENVIRONMENT = {"versions": {"torch": "2.11", "triton": "3.6.0"}}
SHAPES = ([2304, 768], [768, 768], [3072, 768], [768, 3072])


def row(kind, device=DEVICE, key=None, **fields):
    arguments = fields.pop("arguments", {})
    point = {"kind": kind, "key": key or f"{kind} {arguments}", **arguments}
    fields = {"busy": False, "notes": {}, **fields}
    return {"kind": "gpu", "device": device, "environment": ENVIRONMENT, "point": point, **fields}


def quantile(median):
    return {"median": median, "p20": median, "p80": median}


def layer(
    speedup=3.0, shape=(3072, 768), block=(64, 64), sparsity=0.9, tokens=4096, device=DEVICE, **changes
):
    arguments = {"shape": list(shape), "block": list(block), "sparsity": sparsity, "tokens": tokens}
    arguments |= {"mode": "forward", "cold": False}
    fields = {
        "us": {"cublas": quantile(30.0), "panel": quantile(30.0 / speedup)},
        "ratio": {"panel": quantile(speedup)},
        "side": "panel",
        "flops": 2e9,
        "moved_bytes": 3e7,
        "tflops": 200.0,
        "cublas_tflops": 650.0,
    }
    return row("layer", device, arguments=arguments, **{**fields, **changes})


def limits(device=DEVICE):
    figures = {"matmul": {"bfloat16": 8e14}, "memory": 4e12, "l2": 6e12, "kernel": 2e-6, "launch": 8e-6}
    return row("limits", device, **figures, replay=5e-6)


def titled(rows, title):
    return next(table for table in gpu_tables(rows) if table.title.startswith(title))


def test_ragged_batches_stand_against_the_dense_model_in_graphs():
    times = {"dense": 4000.0, "graphs dense": 2000.0, "graphs sparse": 800.0}
    arguments = {"model": "bert-base", "batch": 32, "block": [64, 64], "sparsity": 0.9}
    requests = row(
        "requests",
        arguments=arguments,
        us={name: quantile(value) for name, value in times.items()},
        ratio={"graphs sparse": quantile(2.5), "dense": quantile(0.5)},
        side="graphs sparse",
        batches=16,
        tokens=600,
        padded_tokens=1000,
    )
    table = titled([requests], "Ragged batches")
    assert table.rows == (
        ("bert-base, 16 batches of 32", "90% in 64x64", "60%", "2.50x", "4.000", "2.000", "0.800"),
    )
    assert table.columns[3:] == ("vs dense in graphs", "dense ms", "graphs dense ms", "graphs sparse ms")


def test_every_table_has_the_name_of_the_device():
    for table in gpu_tables([layer(), limits()]):
        assert "NVIDIA H200" in table.title
        assert "torch 2.11, triton 3.6.0" in table.notes[-1]


def test_devices_have_tables_of_their_own():
    other = {**DEVICE, "name": "NVIDIA A100"}
    titles = [table.title for table in gpu_tables([limits(), limits(other)])]
    assert titles == ["Limits of the device (NVIDIA H200)", "Limits of the device (NVIDIA A100)"]


def test_dry_runs_make_no_tables_unless_asked_for():
    dry = {**DEVICE, "name": "DRY RUN", "dry_run": True}
    assert gpu_tables([layer(device=dry), limits(dry)]) == []
    assert gpu_tables([layer(device=dry)], dry_run=True)


def test_a_goal_is_the_geometric_mean_over_the_layers_with_its_worst_one():
    rows = [layer(speedup, shape) for speedup, shape in zip((2.0, 4.0, 4.0, 8.0), SHAPES, strict=True)]
    (shown,) = titled(rows, "Speed to reach").rows
    assert shown == ("64x64 blocks, 90 %, M = 4096", "4.00x", "2.7x", "3.6x", "2.00x (2304x768)", "yes")


def test_a_goal_that_is_missed_says_so():
    (shown,) = titled([layer(1.5)], "Speed to reach").rows
    assert shown[-1] == "NO"


def test_groups_are_held_against_blocks_of_the_same_layer():
    rows = [layer(3.0), layer(2.7, block=(64, 8))]
    shown = titled(rows, "Speed to reach").rows
    assert shown[-1][:4] == ("64x8 groups against 64x64 blocks, 90 %, M = 4096", "0.90x", "0.95x", "1x")


def test_a_baseline_is_held_against_us_where_both_ran():
    times = {"cublas": quantile(30.0), "panel": quantile(10.0), "torch bsr": quantile(20.0)}
    found = layer(us=times, ratio={"panel": quantile(3.0), "torch bsr": quantile(1.5)})
    cells = {shown[0]: shown[1] for shown in titled([found], "Speed to reach").rows}
    assert cells["torch BSR, 64x64 blocks, 90 %, M = 4096"] == "2.00x"
    baselines = titled([found], "Block-sparse kernels")
    assert baselines.columns[3:] == ("panel", "torch bsr")
    assert baselines.rows[0][3:] == ("3.00x", "1.50x")


def test_layers_stand_by_tokens_and_block_with_a_column_a_sparsity():
    rows = [layer(3.0), layer(1.5, sparsity=0.75), layer(2.0, tokens=128), layer(2.5, shape=(4096, 1024))]
    base = titled(rows, "Packed panels, BERT-base, forward")
    assert base.columns == ("tokens", "block", "75%", "90%")
    assert base.rows == (("128", "64x64", "-", "2.00x"), ("4096", "64x64", "1.50x", "3.00x"))
    assert titled(rows, "Packed panels, BERT-large").rows == (("4096", "64x64", "2.50x"),)


def test_figures_that_spread_too_far_are_doubted():
    table = titled([layer(busy=True)], "Packed panels")
    assert table.rows[0][-1] == "3.00x?"
    assert "spread too far" in table.notes[-1]


def test_the_latest_record_of_a_point_counts():
    assert titled([layer(1.0), layer(4.0)], "Packed panels").rows[0][-1] == "4.00x"


def model(**arguments):
    point = {"model": "bert-base", "batch": 32, "block": [64, 64], "sparsity": 0.9, **arguments}
    fields = {"us": {"dense": quantile(1400.0), "sparse": quantile(600.0)}, "ratio": {}, "speedup": 2.1}
    fields["against"] = "torch.compile fused dense"
    sizes = {"length": 128, "tokens": 4096, "weight_bytes": 17e6, "dense_weight_bytes": 170e6}
    return row("model", arguments=point, **fields, **sizes)


def test_whole_models_are_held_against_the_fastest_dense_one():
    rows = [model()]
    assert titled(rows, "Whole models").rows[0][:3] == ("bert-base, batch 32 x 128", "90% in 64x64", "2.10x")
    goal = titled(rows, "Speed to reach").rows[0]
    assert goal[0].endswith("against torch.compile fused dense")
    assert goal[-1] == "yes"
    (shown,) = titled([model(ragged=True)], "Whole models").rows
    assert shown[0] == "bert-base, batch 32 x up to 128"


def test_a_model_without_half_of_its_heads_and_neurons_has_a_goal_of_its_own():
    rows = [model(), model(removed=0.5)]
    assert titled(rows, "Whole models").rows[1][1] == "90% in 64x64, 50% of heads and neurons removed"
    plain, removed = titled(rows, "Speed to reach").rows
    assert (plain[1:4], plain[-1]) == (("2.10x", "1.8x", "2.6x"), "yes")
    assert (removed[1:4], removed[-1]) == (("2.10x", "2.6x", "3.8x"), "NO")
    assert removed[0].startswith("BERT-base, 64x64 blocks, 90 %, 50% of heads and neurons removed, M = 4096")


def test_memory_has_a_row_a_side():
    held = dict.fromkeys(
        ("parameters", "forward_peak", "activations", "held_before_step", "step_peak"), 1_000_000
    )
    fields = {"sides": {"dense": held, "sparse": held}, "weight_bytes": 17e6, "dense_weight_bytes": 170e6}
    rows = [row("memory", arguments={"model": "bert-base", "batch": 32}, **fields)]
    assert [shown[1] for shown in titled(rows, "Memory").rows] == ["170.0", "17.0"]
    assert titled(rows, "Speed to reach").rows[0][1] == "0.100x"


def test_tests_that_failed_and_tools_that_are_missing_are_said():
    rows = [
        row("tests", passed=False, counts={"failed": 1, "passed": 9}),
        row("sanitizer", passed=None, note="not installed"),
    ]
    assert [shown[1:] for shown in titled(rows, "Tests").rows] == [
        ("NO", "1 failed, 9 passed"),
        ("-", "not installed"),
    ]


def test_what_moves_through_the_cache_is_limited_by_it_and_the_rest_by_memory():
    cached, not_cached = marks([layer(moved_bytes=1e7), layer(moved_bytes=1e9, flops=1e11)], limits())
    assert cached.possible == min(8e14, 6e12 * 200)
    assert not_cached.possible == 4e12 * 100
    assert cached.achieved == 2e14


def test_the_picture_needs_limits_and_layers(tmp_path):
    pytest.importorskip("matplotlib")
    roofline_plot([limits(), layer()], tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="limits"):
        roofline_plot([layer()], tmp_path / "gpu.png")
    with pytest.raises(ValueError, match="no layer"):
        roofline_plot([limits()], tmp_path / "gpu.png")


def test_blocks_beyond_the_last_colour_get_another_marker():
    pytest.importorskip("matplotlib")
    blocks = [(height, width) for height in (16, 32, 64) for width in (8, 64)]
    (axes,) = roofline_figure([limits(), *(layer(block=block) for block in blocks)]).axes
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in axes.collections
    }
    assert len(looks) == len(blocks) > len(COLOURS)


def test_a_picture_a_device_that_has_both():
    other, dry = ({**DEVICE, "name": "H100"}, {**DEVICE, "name": "CPU", "dry_run": True})
    rows = [limits(), layer(), layer(device=other), layer(device=dry)]
    (picture,) = roofline_pictures(rows)
    assert picture.title == "Achieved against possible: NVIDIA H200"
    assert picture.alt == (
        "Useful TFLOP/s of 1 measured layers under the roofline of NVIDIA H200, packed in blocks of 64x64: "
        "200 TFLOP/s, a median of 75% of what is possible."
    )


def test_what_failed_is_said_but_not_of_a_dry_run():
    failed = {
        "kind": "gpu_failed",
        "point": {"key": "layer a"},
        "reason": "RuntimeError: no\nmore",
        "device": DEVICE,
    }
    dry = failed | {"device": {**DEVICE, "dry_run": True}}
    (table,) = failure_tables([failed, dry, layer()])
    assert table.rows == (("layer a", "RuntimeError: no"),)
    assert failure_tables([dry]) == []


def test_goals_are_named_apart():
    assert len({goal.name for goal in GOALS}) == len(GOALS)


def test_no_records_of_a_gpu_make_no_table():
    assert gpu_tables([{"kind": "environment"}]) == []


@pytest.mark.parametrize(
    ("kind", "title"),
    [("activation", "Packed panels by the activation"), ("occupancy", "Packed panels by tokens")],
)
def test_activations_and_occupancies_are_shown_in_microseconds(kind, title):
    arguments = {"shape": [3072, 768], "tokens": 4096, "sparsity": 0.9}
    fields = {"us": {"cublas": quantile(28.0), "panel gelu": quantile(17.875)}, "ratio": {}}
    table = titled([row(kind, arguments=arguments, **fields)], title)
    assert table.columns == ("layer", "cublas", "panel gelu")
    assert table.rows == (("3072x768, M = 4096, 90%", "28.00", "17.88"),)


def test_the_up_projection_has_a_goal_with_and_without_gelu():
    arguments = {"shape": [3072, 768], "tokens": 4096, "sparsity": 0.9, "block": [64, 64]}
    times = {"cublas": 28.0, "cublas + gelu": 42.0, "panel": 10.0, "panel gelu": 20.0}
    us = {side: quantile(each) for side, each in times.items()}
    table = titled([row("activation", arguments=arguments, us=us, ratio={})], "Speed to reach")
    reached = {name: (shown, verdict) for name, shown, *_, verdict in table.rows}
    assert reached["FFN up, 64x64 blocks, 90 %, M = 4096"] == ("2.80x", "yes")
    assert reached["FFN up with GELU, 64x64 blocks, 90 %, M = 4096"] == ("2.10x", "NO")


def test_points_at_which_a_call_was_killed_are_no_failures():
    killed = {**row("layer"), "kind": "gpu_killed"}
    assert failure_tables([killed]) == []
    assert gpu_tables([killed]) == []
