"""The pictures show what the files hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from run_folders import MATRICES, write_history, write_run

from dynarank.report.pictures import draw_pictures, file_name, inline_svg, save
from dynarank.report.plot_quality import draw_budget_against_quality, short, spread
from dynarank.report.plots import POINTS, draw_curves, looks, over_seeds
from dynarank.report.runs import read_runs
from dynarank.report.tables import Table, build_table
from dynarank.training.rank_map import rank_grid


@pytest.fixture
def table(tmp_path: Path) -> Table:
    for method, base in (("dora", 0.6), ("adalora", 0.5)):
        for seed in range(3):
            folder = write_run(
                tmp_path / f"{method}-{seed}",
                "cola",
                method,
                seed,
                base + seed / 100,
                parameters=100 + seed,
            )
            write_history(folder, 5, seed)
    return build_table(read_runs([tmp_path])[0])


def test_every_picture_of_a_sweep_and_of_a_run(table: Table, tmp_path: Path) -> None:
    names = {picture.name for picture in draw_pictures(table, table.runs())}
    assert names == {f"{name}_cola" for name in ("budget_quality", "curves", "loss", "budget", "scores", "rank_maps",
                                                 "rank_agreement")}  # fmt: skip
    one = build_table(table.runs()[:1])
    pictures = draw_pictures(one, one.runs())
    assert {picture.name for picture in pictures} == {"curves_cola", "loss_cola", "allocation"}
    save(pictures[0], tmp_path)
    assert (tmp_path / "curves_cola.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_the_mean_over_seeds_in_a_band_of_their_range(tmp_path: Path) -> None:
    for seed, score in enumerate((0.6, 0.8, 0.7)):
        write_run(tmp_path / str(seed), "cola", "lora", seed, score)
    axes = draw_curves(build_table(read_runs([tmp_path])[0]), "cola").axes[0]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.7)
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[np.isclose(band[:, 0], 1)][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((0.6, 0.8))


def test_many_values_are_averaged_and_few_are_not(table: Table, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "long", "cola", "lora", 0, 0.5)
    (folder / "metrics.csv").write_text(
        "step,train/loss\n" + "".join(f"{i},{i % 2}\n" for i in range(1, 60 * POINTS + 1))
    )
    run = read_runs([folder])[0][0]
    grid, values = over_seeds([run], "train/loss")
    assert values == pytest.approx(np.full((1, POINTS), 0.5))
    grid, values = over_seeds(table.runs()[:2], "val/accuracy")
    assert (grid[0], grid[-1], values[0, 0], values[0, -1]) == pytest.approx((0.25, 1.0, 0.6, 0.9))


def test_of_many_settings_the_best_have_colours(tmp_path: Path) -> None:
    for index in range(12):
        write_run(tmp_path / str(index), "cola", f"m{index:02d}", 0, 0.1 + index / 100)
    found = looks(build_table(read_runs([tmp_path])[0]), "cola")
    labelled = {setting[0] for setting, look in found.items() if look.label}
    assert labelled == {f"m{index:02d}" for index in range(4, 12)}
    assert len({(look.colour, look.dashes) for look in found.values() if look.label}) == 8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_keep_their_distance_and_their_order(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    places = spread(wanted, gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted))  # moved as far up as down
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_no_label_covers_another(tmp_path: Path) -> None:
    for index in range(16):
        write_run(
            tmp_path / str(index),
            "cola",
            f"m{index}",
            0,
            0.5 + (index % 4) / 1000,
            parameters=100 + index,
        )
    figure = draw_budget_against_quality(build_table(read_runs([tmp_path])[0]), "cola")
    assert figure is not None
    figure.savefig(tmp_path / "x.png")
    boxes = sorted(
        (Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0
    )
    assert len(boxes) == 16
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_sizes_are_written_short() -> None:
    assert [short(value) for value in (0, 86400, 1_330_000, 124e6)] == [
        "0",
        "86.4 k",
        "1.33 M",
        "124 M",
    ]


def test_stacks_stand_above_each_other_under_their_own_words() -> None:
    ranks = {
        "model.encoder.layers.0.fc1": 1,
        "model.encoder.layers.1.fc1": 2,
        "model.decoder.layers.0.fc2": 3,
    }
    names, values = rank_grid(ranks)
    assert names == ["encoder fc1", "decoder fc2"]
    assert np.array_equal(values, [[1, 2], [3, np.nan]], equal_nan=True)
    assert rank_grid(dict.fromkeys(MATRICES, 1))[0] == ["query", "key", "output.dense"]


def test_names_are_drawn_as_they_are_and_stay_in_the_folder(tmp_path: Path) -> None:
    name = "</text><script>$x_$ & ../../a"
    write_run(tmp_path / "a", name, "dora", 0, 0.5)
    table = build_table(read_runs([tmp_path])[0])
    picture = draw_pictures(table, table.runs())[0]
    svg = inline_svg(picture)
    assert "<script" not in svg
    assert "&lt;/text&gt;&lt;script&gt;$x_$ &amp; " in svg
    assert "/" not in file_name(name)
