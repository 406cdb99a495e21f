"""The picture: break-even where the line crosses one, and a file that is a picture."""

import struct

import pytest

from sparsebert.report.speedup_plots import break_even, speedup_figure, speedup_pictures, speedup_plot

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("points", "crossing"),
    [
        ([(20, 0.8), (40, 1.25)], 30),
        ([(40, 1.25), (20, 0.8), (60, 2.0)], 30),
        ([(20, 0.5), (40, 1.0)], 40),
        ([(20, 1.5), (40, 2.0)], None),
        ([(20, 0.5), (40, 0.9)], None),
        ([], None),
    ],
)
def test_break_even_is_interpolated_between_measured_points(points, crossing):
    assert break_even(points) == (None if crossing is None else pytest.approx(crossing))


def ratios(onednn, eager):
    return {
        name: {"median": value, "p20": 0.95 * value, "p80": 1.05 * value}
        for name, value in (("onednn", onednn), ("eager", eager))
    }


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_sweep_becomes_a_png(bench_record, tmp_path):
    rows = [bench_record(sparsity=s, ratio=ratios(r, 2 * r)) for s, r in ((0.3, 0.8), (0.7, 2.0), (0.9, 4.0))]
    speedup_plot([*rows, bench_record(provider="eager")], tmp_path / "plot.png")
    width, height = png_size(tmp_path / "plot.png")
    assert width > 800
    assert height > 500
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(("name", "start"), [("p.svg", b"<?xml"), ("p.pdf", b"%PDF"), ("p.PNG", b"\x89PNG")])
def test_the_ending_decides_the_format(bench_record, tmp_path, name, start):
    speedup_plot([bench_record()], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_another_ending_is_refused_and_nothing_written(bench_record, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot draw .*plot\.jpg: a picture's name ends with .png, .svg or .pdf"
    ):
        speedup_plot([bench_record()], tmp_path / "plot.jpg")
    assert not list(tmp_path.iterdir())


def test_a_picture_for_each_workload_that_several_tickets_were_measured_on(bench_record):
    one, other, third = (
        bench_record(0.7),
        bench_record(0.9),
        bench_record(0.9, workload={**bench_record()["workload"], "batch": 8}),
    )
    (picture,) = speedup_pictures([one, other, third])
    assert picture.title == "Speed-up: bert-base, batch 1, 128 tokens, float32"
    assert picture.alt.startswith("Speed-up against sparsity, element, 70% to 90%.")
    assert picture.png().startswith(b"\x89PNG")
    against_others = [bench_record(share, ratio={"onnxruntime": {"median": 2.0}}) for share in (0.7, 0.9)]
    assert speedup_pictures(against_others) == []


def test_sparsities_that_differ_by_a_few_weights_are_not_spread_over_the_axis(bench_record):
    panels = {"granularity": "panel", "block_size": [32, 2], "sparsity": 0.9000048, "density": 0.0999952}
    figure = speedup_figure([bench_record(0.9), bench_record(ticket=panels)])
    assert figure.axes[0].get_xlim() == pytest.approx((89, 91), abs=0.01)


def test_each_tolerance_has_a_line_of_its_own(bench_record):
    figure = speedup_figure([bench_record(0.9), bench_record(0.9, tolerance="bf16")])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "element, against oneDNN" in labels
    assert "element, tolerance bf16, against oneDNN" in labels


def test_one_point_is_enough(bench_record, tmp_path):
    speedup_plot([bench_record()], tmp_path / "plot.png")
    assert png_size(tmp_path / "plot.png")


def test_nothing_to_plot_is_refused_and_nothing_written(bench_record, tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        speedup_plot([bench_record(provider="eager"), bench_record(ratio={})], tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(bench_record, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        speedup_plot([bench_record()], tmp_path / "nowhere" / "plot.png")
