"""The picture: break-even where the line crosses one, and a file that is a picture."""

import struct

import pytest

from sparsebert.report.break_even import break_even, break_even_text, curves, dense_reference
from sparsebert.report.model_tables import sweep_tables
from sparsebert.report.speedup_plots import speedup_figure, speedup_pictures, speedup_plot

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


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(20, 0.8), (40, 1.25)], "at 30 % (interpolated between 20 and 40 %)"),
        ([(50, 1.2), (90, 3.0)], "below 50 %, the lowest measured, where it is 1.20x"),
        ([(50, 0.5), (90, 0.9)], "not reached up to 90 %, where it is 0.90x"),
        ([(50, 1.2), (60, 0.9)], "not reached up to 60 %, where it is 0.90x"),
    ],
)
def test_break_even_in_words_says_between_which_measurements_it_lies(points, words):
    assert break_even_text(points) == words


def test_the_reference_is_the_fastest_dense_form_of_those_timed_beside_all_tickets(bench_record):
    def row(sparsity, **medians):
        return bench_record(sparsity, ratio={name: {"median": value} for name, value in medians.items()})

    rows = [
        row(0.5, onednn=2.0, bf16=1.2, deepsparse=0.9, compact=0.5),
        row(0.9, onednn=5.0, bf16=3.1, deepsparse=1.1, int8=1.0),
    ]
    assert dense_reference(curves(rows)) == "bf16"
    assert dense_reference(curves([bench_record(ratio={"deepsparse": {"median": 2.0}})])) is None


def test_break_even_is_said_below_the_table_and_in_the_alt_text(bench_record):
    rows = [bench_record(sparsity=s, ratio=ratios(r, 2 * r)) for s, r in ((0.2, 0.8), (0.4, 1.25), (0.9, 4))]
    rows += [row | {"ticket": {**row["ticket"], "granularity": "2:4"}} for row in rows[1:]]
    words = (
        "Break-even with the fastest dense form, oneDNN: element at 30 % (interpolated between 20 and 40 %); "
        "2:4 below 40 %, the lowest measured, where it is 1.25x."
    )
    (table,) = sweep_tables(rows)
    assert words in table.notes
    (picture,) = speedup_pictures(rows)
    assert words in picture.alt
    assert words in picture.caption
    assert picture.alt.endswith("Element 0.80x at 20 % to 4.00x at 90 %; 2:4 1.25x at 40 % to 4.00x at 90 %.")


def test_the_legend_names_the_break_even_that_a_ring_marks(bench_record):
    rows = [bench_record(sparsity=s, ratio=ratios(r, 2 * r)) for s, r in ((0.2, 0.8), (0.4, 1.25))]
    (axes,) = speedup_figure(rows).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "element, against oneDNN: break-even 30 %"
    assert [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1] == [
        pytest.approx(30)
    ]


@pytest.mark.parametrize("tolerance", ["fp32", "bf16"])
def test_the_legend_covers_no_curve_and_not_the_line_of_1x(bench_record, tolerance):
    rows = [
        bench_record(sparsity, ratio=ratios(ratio, 2 * ratio), format=name, tolerance=tolerance)
        for sparsity, ratio in ((0.2, 0.8), (0.4, 1.25), (0.9, 4))
        for name in ("element", "vector", "compact", "bitmap", "csr")
    ]
    figure = speedup_figure(rows)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.bbox.y1
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.texts[0].get_window_extent().y0  # below the title


def test_a_forced_format_is_a_line_of_its_own(bench_record):
    rows = [bench_record(0.9), bench_record(0.9, format="bitmap")]
    assert [curve.name for curve in curves(rows)] == ["element", "element, format bitmap"]


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
    beside_nothing = [bench_record(share, ratio={}) for share in (0.7, 0.9)]
    assert speedup_pictures(beside_nothing) == []


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
