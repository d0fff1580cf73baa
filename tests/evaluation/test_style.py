"""The plotting style: distinct series, legends next to the axes, labels in words."""

import pytest

from score_sde.evaluation.style import COLORS, MARKERS, in_words, new_figure, place_legend, series
from score_sde.sweeps.plots import save_axes
from score_sde.sweeps.report import Row


def test_series_have_distinct_pairs_of_color_and_marker():
    count = len(COLORS) * len(MARKERS)
    assert len({(series(n)["color"], series(n)["marker"]) for n in range(count)}) == count


def test_legend_is_next_to_the_axes_and_has_each_series_once():
    figure, panels = new_figure(2)
    for panel in panels:
        for n in range(3):
            panel.plot([0, 1], [n, n + 1], label=f"series {n}", **series(n))
    place_legend(*panels)
    figure.canvas.draw()
    assert panels[0].get_legend() is None
    legend = panels[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["series 0", "series 1", "series 2"]
    assert legend.get_window_extent().x0 >= panels[1].get_window_extent().x1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fd_classifier_1000.mean", "Fréchet distance\n(classifier features, 1000 samples)"),
        ("overlap_pixels_1000.recall", "recall\n(pixels features, 1000 samples)"),
        ("fd_inception_ratio", "Fréchet distance\n(inception features, relative to test data)"),
        ("sliced_wasserstein_ratio", "sliced Wasserstein distance relative to test data"),
        ("nfe", "number of network evaluations"),
        ("sde.kwargs.beta_max", "SDE beta max"),
    ],
)
def test_labels_are_in_words(name, words):
    assert in_words(name) == words


def test_only_numbers_are_joined_by_lines(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("score_sde.sweeps.plots.save_figure", lambda path, figure: figures.append(figure))
    rows = [
        Row({"model.prediction": prediction, "training.batch_size": size}, [], [], {"nfe": [1.0, 2.0]})
        for prediction in ("x0", "v")
        for size in (8, 16)
    ]
    save_axes(rows, ["nfe"], tmp_path)
    categories, numbers = (figure.axes[0].containers for figure in figures)
    assert [bars[0].get_linestyle() for bars in categories] == ["None", "None"]
    assert [bars[0].get_linestyle() for bars in numbers] == ["-", "-"]
    assert len({bars[0].get_xdata()[0] for bars in categories}) == 2  # side by side
