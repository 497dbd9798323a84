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

from dynarank.report.curves import MOST_POINTS, run_curve, seed_curves
from dynarank.report.pictures import draw_pictures, file_name, inline_svg
from dynarank.report.plot_curves import draw_curves
from dynarank.report.plot_quality import draw_budget_against_quality, short, spread
from dynarank.report.plot_style import looks
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
    assert names == {
        f"{name}_cola"
        for name in (
            "budget_quality",
            "curves",
            "loss",
            "budget",
            "scores",
            "rank_maps",
            "rank_agreement",
            "rank_budgets",
        )
    }
    one = build_table(table.runs()[:1])
    pictures = list(draw_pictures(one, one.runs()))
    assert {picture.name for picture in pictures} == {"curves_cola", "loss_cola", "allocation"}
    pictures[0].save(tmp_path)
    assert (tmp_path / "curves_cola.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_is_the_mean_over_seeds_in_a_band_of_their_range(tmp_path: Path) -> None:
    for seed, score in enumerate((0.6, 0.8, 0.7)):
        write_run(tmp_path / str(seed), "cola", "lora", seed, score)
    axes = draw_curves(build_table(read_runs([tmp_path])[0]), "cola").axes[0]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.7)
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[np.isclose(band[:, 0], 2)][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((0.6, 0.8))


def test_many_values_are_averaged_and_few_are_not(table: Table, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "long", "cola", "lora", 0, 0.5)
    rows = "".join(f"{step},{step % 2}\n" for step in range(1, 60 * MOST_POINTS + 1))
    (folder / "metrics.csv").write_text(f"step,train/loss\n{rows}")
    curve = run_curve(read_runs([folder])[0][0], "train/loss")
    assert curve.values == pytest.approx(np.full(MOST_POINTS, 0.5))
    mean = seed_curves(table.runs()[:2], "val/accuracy")
    assert mean is not None
    assert mean.steps.tolist() == [10, 20, 30, 40]  # The steps of the measurements, and no other.
    assert mean.values == pytest.approx(np.tile([0.6, 0.7, 0.8, 0.9], (2, 1)))


def test_seeds_measured_at_other_steps_have_a_line_each(tmp_path: Path) -> None:
    for seed, steps in enumerate(((1, 3, 5), (2, 4, 6))):
        folder = write_run(tmp_path / str(seed), "cola", "lora", seed, 0.5)
        rows = "".join(f"{step},0.{step}\n" for step in steps)
        (folder / "metrics.csv").write_text(f"step,val/accuracy\n{rows}")
    runs = read_runs([tmp_path])[0]
    assert seed_curves(runs, "val/accuracy") is None
    lines = draw_curves(build_table(runs), "cola").axes[0].lines
    assert [list(line.get_xdata()) for line in lines[:2]] == [[1, 3, 5], [2, 4, 6]]
    assert {line.get_marker() for line in lines[:2]} == {"o"}


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
    picture = next(draw_pictures(table, table.runs()))
    svg = inline_svg(picture.svg)
    assert "<script" not in svg
    assert "&lt;/text&gt;&lt;script&gt;$x_$ &amp; " in svg
    assert "/" not in file_name(name)


def test_names_of_pictures_are_short_and_stay_apart() -> None:
    long = "\N{CJK UNIFIED IDEOGRAPH-4F60}" * 199
    names = [file_name(task) for task in ("a/b", "a_b", "a\ud800b", f"{long}1", f"{long}2")]
    assert len(set(names)) == 5
    assert all(len(name.encode()) < 100 for name in names)
    assert file_name("mnli-matched") == "mnli-matched"
