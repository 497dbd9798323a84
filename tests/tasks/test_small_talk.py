"""The conversations of the language model's quick start, from an archive of the same form."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from dynarank.tasks.small_talk import LONGEST, MEMBER, load_small_talk


def turn(sender: str, *lines: str) -> list[dict[str, Any]]:
    return [{"sender": sender, "text": line} for line in lines]


def test_short_talks_of_two_people_with_no_speaker_on_both_sides(tmp_path: Path) -> None:
    talks = {}
    for first in range(12):
        for second in range(first):
            pair = (f"s{first}", f"s{second}")
            turns = [turn(pair[number % 2], f"{pair[number % 2]} {number}") for number in range(5)]
            talks[f"{first}-{second}"] = {"messages": turns}
    talks["alone"] = {"messages": [turn("s1", "x")] * 4}
    talks["brief"] = {"messages": [turn("s1", "x"), turn("s2", "y")]}
    for number in range(12):  # whoever validates: long ones are nowhere
        texts = ["x" * (LONGEST + 1), "y", "z", "w"]
        pair = (f"s{number}", f"s{(number + 1) % 12}")
        turns = [turn(pair[place % 2], text) for place, text in enumerate(texts)]
        talks[f"long{number}"] = {"messages": turns}
    archive = tmp_path / "package.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr(MEMBER, json.dumps(talks))
    splits = load_small_talk(archive)
    speakers = {}
    for name, rows in splits.items():
        assert len(rows)
        texts = [message["content"] for row in rows["messages"][:] for message in row]
        assert max(map(len, texts)) <= LONGEST
        assert all(len(row) == 4 for row in rows["messages"][:])
        assert [message["role"] for message in rows["messages"][0]] == ["user", "assistant"] * 2
        speakers[name] = {text.split()[0] for text in texts}
    assert not speakers["train"] & speakers["validation"]
