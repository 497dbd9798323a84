"""The doctor as a command, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def command(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [sys.executable, *script.split(), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_fits_one_screen_and_shows_no_secret() -> None:
    done = command(
        "-m dynarank doctor",
        WANDB_API_KEY="canary" * 7,
        HF_TOKEN="hf_canarycanarycanary",
        OMP_NUM_THREADS="1",
    )
    assert "canary" not in done.stdout + done.stderr
    assert done.returncode == int("failed" in done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) <= 24
    for name in ("python", "device", "precision", "hub", "tracker", "disk", "threads"):
        assert f" {name} " in done.stdout


def test_scripts_get_json_and_the_exit_code() -> None:
    done = command("-m dynarank doctor", "--json", DYNARANK_HUB="/nowhere", WANDB_MODE="offline")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert [one["name"] for one in found["checks"] if one["status"] == "fail"] == ["local hub"]


def test_it_works_without_what_training_needs(tmp_path: Path) -> None:
    """As after `pip install dynarank`: torch alone can be imported."""
    missing = ["lightning", "transformers", "peft", "datasets", "hydra", "omegaconf", "wandb"]
    missing += ["huggingface_hub", "rich", "torchmetrics", "numpy", "scipy", "safetensors"]
    script = tmp_path / "script.py"
    script.write_text(
        f"import importlib.metadata, sys\nsys.modules.update(dict.fromkeys({missing}))\n"
        "stated = ['torch>=2.10', 'peft>=0.21; extra == \"train\"']\n"
        "importlib.metadata.requires = lambda name: stated\n"
        "whole = importlib.metadata.version\n"
        "def version(name):\n"
        "    if name == 'peft':\n"
        "        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return whole(name)\n"
        "importlib.metadata.version = version\nfrom dynarank.commands.doctor import main\nmain()\n"
    )
    done = command(str(script))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "fail  package     peft is missing" in done.stdout
    assert ".[train]" in done.stdout
    assert "not looked at, for huggingface_hub is missing" in done.stdout


def test_lightning_is_not_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom dynarank.commands.doctor import examine\nexamine()\n"
        "print('lightning' in sys.modules)\n"
    )
    assert command(str(script)).stdout.strip() == "False"
