"""Labels of points stay readable."""

import itertools

import pytest

pytest.importorskip("matplotlib")

from sparsebert.report.plots import new_figure
from sparsebert.report.point_labels import label_points


def test_labels_of_close_points_do_not_overlap():
    figure, axes = new_figure()
    points = [(1.0, 0.5), (1.01, 0.5), (1.0, 0.501), (1.99, 0.5)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set_xlim(0, 2)
    label_points(axes, points, ["dense fp32", "bf16", "onnxruntime-int8", "at the right edge"])

    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x1 <= axes.get_window_extent().x1 for box in boxes)
