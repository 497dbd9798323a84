"""Run the notebooks in a copy of what they need, and keep their outputs: make notebooks.

What changes from run to run (folders, times, process ids) is replaced before outputs are kept, so
that a notebook changes only where what it shows does. `tests/test_notebooks.py` runs them too, and
compares what they show with what is kept, by `comparable`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SECONDS = 600
"""For a cell, on a machine that does other things too."""
STABLE = (
    (r"[\w./~-]*/site-packages/", "SITE/"),
    (r"[\w./~-]*/bin/dynarank\b", "dynarank"),
    (r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?", "DATE_TIME"),
    (r"\bin \d+ s\b", "in N s"),
    (r", about [\d.]+ (s|min|h) left", ""),
    (r"\((\d+) of (\d+) done[^)]*\)", r"(\2 runs)"),
    (r"<Figure size \S+ with", "<Figure with"),
)
"""What is replaced in kept outputs, and by what."""
NOISE = re.compile(r"^(Failed to load CPU gemm_4bit|.*(Warning|warnings\.warn)).*\n?", re.MULTILINE)
"""Lines of other libraries, which depend on what else is installed."""


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a copy of what of the repository it uses, and return it with its outputs.

    Args:
        name: without its ending.
        folder: an empty one, which holds what the notebook wrote. An error in a cell raises.
    """
    ignored = shutil.ignore_patterns("outputs", ".*")
    shutil.copytree(HERE, folder / "notebooks", ignore=ignored)
    shutil.copytree(HERE.parent / "conf", folder / "conf")
    shutil.copy(HERE.parent / "train.py", folder)
    notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(folder / "notebooks")}}
    # rich heeds COLUMNS, which the notebooks set, where LINES is set too; else a table is as wide
    # as the terminal, which differs.
    os.environ["LINES"] = "40"
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    return notebook


def stable(text: str, folder: Path | None = None) -> str:
    """Return an output's text without what changes from run to run."""
    if folder is not None:
        text = text.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
    for pattern, replacement in STABLE:
        text = re.sub(pattern, replacement, text)
    return NOISE.sub("", text)


def comparable(text: str) -> list[str]:
    """Return what a kept output and a fresh one have in common: words, without any number.

    Numbers differ a little between machines, and lines of runs side by side come in any order.
    """
    lines = []
    for line in stable(text).splitlines():
        words = re.sub(r"[─┌┐└┘├┤│┬┴┼|-]+", " ", line)
        words = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", words)
        if words.split():
            lines.append(" ".join(words.split()))
    return sorted(lines)


def clean(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Make a notebook's outputs the same for every run, in place."""
    notebook.metadata.pop("widgets", None)
    number = 0
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "text" in output:
                output.text = stable(output.text, folder)
            data = output.get("data", {})
            for kind in data:
                if kind.startswith("text/"):
                    data[kind] = stable(data[kind], folder)
        cell.outputs = joined(cell.outputs)


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return outputs in which what was printed in pieces is one piece, without empty ones."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = kept[-1] if kept else {}
        if "text" in output and last.get("name") == output.get("name"):
            kept[-1].text += output.text
        elif output.get("text") != "":
            kept.append(output)
    return kept


def shown(notebook: nbformat.NotebookNode) -> str:
    """Return what a notebook printed and showed, as text; of a picture, its kind."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/markdown", data.get("text/plain", ""))]
            parts += [kind for kind in data if kind.startswith("image/")]
    return "\n".join(parts)


def main(names: list[str]) -> None:
    """Run the named notebooks, or all, and write each with its outputs."""
    for name in names or sorted(path.stem for path in HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            notebook = execute(name, folder)
            clean(notebook, folder)
        nbformat.write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}: kept")


if __name__ == "__main__":
    main(sys.argv[1:])
