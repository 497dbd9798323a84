"""Checkpoints under damage: what is not whole is found out, said, and passed over for one that
is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import forked_command
from tiny import REPOSITORY

from dynarank.checkpoints import resume
from dynarank.checkpoints.resume import copy_run, find_resumption
from dynarank.checkpoints.storage import (
    DamagedCheckpoint,
    DurableIO,
    Manifest,
    checkpoint_path,
    manifest_path,
    newest_valid,
    read_checkpoint,
    remove_all_but,
    seal,
    verify,
)
from dynarank.errors import UserError

IDENTITY = {"task.name": "cola", "optimizer.lr": 0.001, "model.revision": None}


def save(folder: Path, step: int, values: int = 50) -> Path:
    path = checkpoint_path(folder / "checkpoints", step)
    DurableIO().save_checkpoint(
        {"values": torch.full((values,), float(step)), "history": [{"step": step}]}, path
    )
    best = {"score": 0.5, "step": step, "epoch": 1}
    seal(
        path,
        Manifest(step, 1, False, 9, 12.5, best, dict(IDENTITY), [3], ["step 3: seed was 1, is 2"]),
    )
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Checkpoints of steps 10, 20 and 30."""
    return [save(tmp_path, step) for step in (10, 20, 30)]


def refused(path: Path, said: str) -> None:
    """The checkpoint is found out, and the one before it is taken, for the reason that is said."""
    with pytest.raises(DamagedCheckpoint, match=said):
        verify(path)
    newest, manifest, skipped = newest_valid(path.parent)
    assert newest is not None
    assert manifest is not None
    assert (newest.name, manifest.step) == ("step-00000020.ckpt", 20)
    assert len(skipped) == 1
    assert re.search(said, skipped[0])


def renamed(checkpoint: Path) -> Path:
    """The checkpoint under a name of the user's own."""
    kept = checkpoint.with_name("kept-by-me.ckpt")
    manifest_path(checkpoint).replace(manifest_path(kept))
    return checkpoint.replace(kept)


def test_a_checkpoint_of_another_name_is_copied_under_its_usual_one(
    three: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    resumption = find_resumption(str(renamed(three[1])), folder)
    assert resumption is not None
    copy_run(resumption, folder)
    newest, manifest, _ = newest_valid(folder / "checkpoints")
    assert newest is not None
    assert manifest is not None
    assert (newest.name, manifest.step) == ("step-00000020.ckpt", 20)
    assert find_resumption("auto", folder) is not None


def test_in_its_own_folder_a_checkpoint_needs_its_usual_name(three: list[Path]) -> None:
    with pytest.raises(UserError, match=r"Call it step-00000020.ckpt, and the file beside it"):
        find_resumption(str(renamed(three[1])), three[1].parents[1])


def test_a_later_process_does_not_take_the_copy_for_a_run_that_would_be_lost(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher starts it once the first has copied the checkpoint."""
    save(tmp_path / "new", 10)
    with pytest.raises(UserError, match="holds an unfinished run"):
        find_resumption(str(three[0]), tmp_path / "new")
    monkeypatch.setattr(resume, "is_first", lambda: False)
    assert find_resumption(str(three[0]), tmp_path / "new") is not None


def test_what_is_whole_comes_back_as_it_was(three: list[Path]) -> None:
    manifest = verify(three[2])
    assert (manifest.step, manifest.seconds, manifest.identity) == (30, 12.5, IDENTITY)
    assert torch.equal(read_checkpoint(three[2])["values"], torch.full((50,), 30.0))
    assert newest_valid(three[2].parent)[::2] == (three[2], [])


def positions(path: Path) -> Iterator[int]:
    """Bytes of every region of a torch file: headers and contents of all records, the directory,
    and its end."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            yield from range(record.header_offset, record.header_offset + 30, 3)
            yield from range(
                record.header_offset + 30, record.header_offset + 30 + record.file_size, 13
            )
        yield from range(archive.start_dir, size, 5)
    yield from (size - 1, size // 2)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(three: list[Path]) -> None:
    good = three[2].read_bytes()
    flipped = sorted({place for place in positions(three[2]) if place < len(good)})
    assert len(flipped) > 200
    for place in flipped:
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        three[2].write_bytes(bad)
        refused(three[2], r"step-00000030\.ckpt: its content has changed \(sha256\)")


def test_a_flipped_bit_anywhere_in_a_manifest_is_found_or_changes_nothing(
    three: list[Path],
) -> None:
    record = three[2].with_suffix(".json")
    good, before, found = record.read_bytes(), verify(three[2]), 0
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        record.write_bytes(bad)
        try:
            assert verify(three[2]) == before, bytes(bad[max(0, place - 20) : place + 20])
        except DamagedCheckpoint:
            found += 1
    assert found >= len(
        good.replace(b" ", b"").replace(b"\n", b"")
    )  # white space may become other white space
    bad = good.replace(b'"step": 30,', b'"step": 31,')
    record.write_bytes(bad)
    refused(
        three[2], r"step-00000030\.ckpt: its manifest step-00000030\.json has changed \(sha256\)"
    )


@pytest.mark.parametrize("suffix", [".ckpt", ".json"])
def test_a_truncated_or_empty_file_is_found(suffix: str, three: list[Path]) -> None:
    path = three[2].with_suffix(suffix)
    good = path.read_bytes()
    for size in [0, 1, *range(2, len(good) - 2, len(good) // 40)]:
        path.write_bytes(good[:size])
        refused(
            three[2],
            f"holds {size:,} of {len(good):,} bytes" if suffix == ".ckpt" else "cannot be read",
        )
    path.write_bytes(good + b" ")
    if suffix == ".ckpt":
        refused(three[2], "holds")


def rewritten(path: Path, **changes: Any) -> None:
    record = path.with_suffix(".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def test_a_missing_or_strange_manifest_is_found(three: list[Path]) -> None:
    record = three[2].with_suffix(".json")
    rewritten(three[2], format=2, shards=["a", "b"])
    refused(three[2], r"has format 2, this version reads 1")
    for content in ("[]", "null", "{}", "\xff", '{"format": 1}', "[" * 9):
        record.write_text(content, encoding="latin-1")
        refused(three[2], r"its manifest step-00000030\.json cannot be read")
    record.unlink()
    refused(three[2], r"was not finished \(it has no manifest\)")
    save(three[2].parents[1], 30)
    three[2].unlink()
    refused(three[2], "is missing")
    three[2].mkdir()
    refused(three[2], "is missing")


def test_what_killed_writers_left_is_passed_over_and_removed(three: list[Path]) -> None:
    folder = three[2].parent
    for name in ("step-00000040.ckpt.tmp", "step-00000030.json.tmp"):
        (folder / name).write_bytes(b"half")
    assert newest_valid(folder)[::2] == (three[2], [])
    remove_all_but(folder, {20, 30})
    assert sorted(path.name for path in folder.iterdir()) == [
        f"step-000000{step}.{kind}" for step in (20, 30) for kind in ("ckpt", "json")
    ]


def test_the_user_is_told_what_was_skipped_and_why(
    three: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = three[2].parents[1]
    three[2].write_bytes(b"")
    with caplog.at_level("INFO"):
        found = find_resumption("auto", folder)
    assert found is not None
    assert found.manifest.step == 20
    assert re.search(r"skipped a checkpoint: step-00000030\.ckpt: holds 0 of", caplog.text)
    assert re.search(r"resuming from .*step-00000020\.ckpt \(step 20\)", caplog.text)
    with pytest.raises(
        UserError,
        match=rf"resume = {three[2]}: step-00000030\.ckpt: holds 0 of.*resume={three[2].parent} tak",  # noqa: E501
    ):
        find_resumption(str(three[2]), folder)
    three[0].with_suffix(".json").unlink()
    three[1].write_bytes(three[1].read_bytes()[:-1])
    with pytest.raises(
        UserError,
        match=r"resume = auto: no checkpoint in .* is whole \(step-00000030.*\)\. .*resume=never",
    ):
        find_resumption("auto", folder)


def test_what_a_pickle_would_run_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "step-00000010.ckpt"
    torch.save({"state_dict": {}, "rest": Harm()}, path)
    seal(path, Manifest(10, 1, False, 0, 1.0, None, {}, [], []))
    verify(path)
    with pytest.raises(
        UserError,
        match=r"step-00000010\.ckpt: is no checkpoint of dynarank, or holds what could run code",
    ):
        DurableIO().load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "rest").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 512)
        except OSError:
            pass


def test_a_disk_that_is_full_in_the_middle_keeps_what_is_there(small_disk: Path) -> None:
    for step in (10, 20):
        save(small_disk, step, values=20_000)
    with pytest.raises(
        UserError, match=r"step-00000030\.ckpt could not be written: .*\. The earlier ones"
    ):
        save(small_disk, 30, values=60_000)
    path = checkpoint_path(small_disk / "checkpoints", 30)
    DurableIO().save_checkpoint({"values": torch.zeros(50)}, path)
    fill(small_disk)
    with pytest.raises(
        UserError, match=r"step-00000030\.json could not be written: .*No space left.*resume=auto"
    ):
        seal(path, Manifest(30, 1, False, 0, 1.0, None, {}, [], []))
    assert not list(small_disk.rglob("*.tmp"))
    newest, _, skipped = newest_valid(path.parent)
    assert newest == checkpoint_path(path.parent, 20)
    assert skipped == ["step-00000030.ckpt: was not finished (it has no manifest)"]
    assert torch.equal(read_checkpoint(newest)["values"], torch.full((20_000,), 20.0))


def test_kills_in_saves_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    command = [
        str(REPOSITORY / "benchmarks/kills_in_saves.py"),
        str(tmp_path / "saves"),
        "--kills",
        "10",
    ]
    elsewhere = ["--tmpdir", "/dev/shm"] if Path("/dev/shm").is_dir() else []
    done = forked_command([*command, *elsewhere], tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "always a whole checkpoint" in done.stdout
    assert "left half written" in done.stdout


def test_a_manifest_nested_without_an_end_is_damage(three: list[Path]) -> None:
    three[2].with_suffix(".json").write_text("[" * 100_000)
    refused(three[2], "cannot be read")


def test_checkpoints_of_other_programs_are_neither_read_nor_removed(three: list[Path]) -> None:
    """`step-100.ckpt` is a name that many programs give."""
    folder = three[0].parent
    others = [folder / name for name in ("step-100.ckpt", "step-best.json", "step-100.ckpt.tmp")]
    for other in others:
        other.write_text("somebody's")
    assert newest_valid(folder)[0] == three[2]
    remove_all_but(folder, {30})
    assert [other.read_text() for other in others] == ["somebody's"] * 3
    assert not three[0].exists()
