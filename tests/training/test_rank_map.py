from __future__ import annotations

from pathlib import Path

import pytest

from dynarank.training.rank_allocation import mean_ranks
from dynarank.training.rank_map import Place, draw_rank_map, place, rank_map_title, save_rank_map


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> None:
    """Let rank maps be drawn to the end here."""


BART = {
    f"model.{stack}.layers.{layer}.{matrix}": layer
    for stack, matrices in {
        "encoder": ["self_attn.q_proj", "fc1"],
        "decoder": ["encoder_attn.k_proj"],
    }.items()
    for layer in range(3)
    for matrix in matrices
}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (
            "roberta.encoder.layer.11.output.dense",
            Place("roberta.encoder.layer", 11, "output.dense"),
        ),
        (
            "encoder.block.2.layer.1.DenseReluDense.wi",
            Place("encoder.block", 2, "layer.1.DenseReluDense.wi"),
        ),
        ("lm_head", Place("", 0, "lm_head")),
    ],
)
def test_place(name: str, where: Place) -> None:
    assert place(name) == where


def test_a_panel_a_stack_a_cell_a_matrix() -> None:
    figure = draw_rank_map(BART, 3, "bart")
    panels = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "model.encoder.layers",
        "model.decoder.layers",
    ]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "self_attn.q_proj",
        "fc1",
    ]
    assert [text.get_text() for text in panels[0].texts] == ["0", "1", "2"] * 2


def test_matrices_that_a_layer_lacks_stay_blank(tmp_path: Path) -> None:
    figure = draw_rank_map({"h.0.a": 0, "h.1.a": 4, "h.1.b": 2}, 4)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "4", "2"]
    figure.savefig(tmp_path / "map.png")


def test_no_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no ranks"):
        draw_rank_map({}, 4)


def test_numbers_for_trackers_without_pictures() -> None:
    means = mean_ranks({"h.0.a": 0, "h.1.a": 4, "h.1.b": 2})
    assert means == {
        "rank/matrix/a": 2.0,
        "rank/matrix/b": 2.0,
        "rank/layer/00": 0.0,
        "rank/layer/01": 3.0,
    }


def test_a_rank_map_is_saved_for_screens_and_for_papers_equal_to_the_byte(tmp_path: Path) -> None:
    title = rank_map_title("bart-base", "xsum", "dora", 3, budget=2, metric="rouge1", score=38.123)
    assert title == "bart-base, xsum, dora, budget 2, seed 3, rouge1 38.12"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_rank_map(tmp_path / name, BART, 3, title)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert names == {"rank_map.png", "rank_map.svg", "rank_map.pdf"}
    for name in names:
        first = (tmp_path / "first" / name).read_bytes()
        assert first == (tmp_path / "second" / name).read_bytes(), name
    assert title in (tmp_path / "first" / "rank_map.svg").read_text()


@pytest.mark.parametrize("name", ["layer.99999999999.x", "$\\frac", "a..b", "", "x.1000.y"])
def test_odd_names_are_drawn(name: str, tmp_path: Path) -> None:
    save_rank_map(tmp_path, {name: 1, "h.0.a": 2}, 4, "$x_{")
