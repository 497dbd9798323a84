"""By the real command: secrets reach no file of a run, and names cannot leave their folder."""

from __future__ import annotations

from pathlib import Path

from tiny import command


def test_no_secret_is_in_any_file_of_a_run(tmp_path: Path, hub_root: Path) -> None:
    canaries = {
        "HF_TOKEN": "hf_canary0canary0canary0canary0",
        "WANDB_API_KEY": "canary1" * 6,
        "MY_PASSWORD": "canary2-canary2",
        "AWS_SECRET_ACCESS_KEY": "canary3/canary3",
        "HF_ENDPOINT": "https://me:canary4@localhost:9",
    }
    overrides = [
        "trainer.epochs=1",
        "budget.interval=1",
        "hydra.job.name=canary5",
        f"hub.root={hub_root}",
    ]
    done = command(*overrides, folder=tmp_path, WANDB_MODE="offline", **canaries)
    assert done.returncode == 0, done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    trackers = [file for file in files if "wandb" in file.parts]
    assert any(file.suffix == ".wandb" for file in trackers)
    for file in files:
        held = file.read_bytes()
        for number in range(5):
            assert f"canary{number}".encode() not in held, file
    assert not any(
        b"canary5" in file.read_bytes() for file in trackers
    )  # nor is the command line, which .hydra keeps
    assert any(b"canary5" in file.read_bytes() for file in files)


def test_a_secret_on_the_command_line_leaves_no_file(tmp_path: Path, hub_root: Path) -> None:
    for override in (
        "hub.root='https://me:canary@host'",
        "+hydra.job.env_set.API_TOKEN=canary",
        "task.path='${oc.env:A_KEY}'",
    ):
        for flags in ([], ["-m", "seed=1,2"]):
            done = command(*flags, override, folder=tmp_path, A_KEY="a-canary")
            assert done.returncode == 2
            assert "canary" not in done.stdout + done.stderr
            assert "saved with its run" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_stay_in_their_folder(tmp_path: Path, hub_root: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert command("task.name=../../../x", f"hub.root={hub_root}", folder=inside).returncode == 2
    assert command("method.name=../../../x", f"hub.root={hub_root}", folder=inside).returncode == 2
    sweep = [
        "-m",
        "task.subset=../../../x,../y",
        "logger=none",
        f"hub.root={hub_root}",
        "hydra.sweep.dir=s",
    ]
    done = command(*sweep, folder=inside)
    assert (done.returncode, "leaves" in done.stderr) == (2, False)
    points = [path.name for path in (inside / "s").iterdir() if path.is_dir()]
    assert len(points) == 2
    assert all("task.subset-" in name for name in points)  # no folders of its own for each slash
    done = command(
        "-m",
        "seed=1,2",
        "hydra.sweep.subdir='../../${hydra.job.num}'",
        f"hub.root={hub_root}",
        folder=inside,
    )
    assert "leaves the sweep's folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert {path.name for path in inside.iterdir()} <= {"outputs", "s"}
