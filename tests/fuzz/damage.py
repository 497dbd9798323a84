"""How a fuzzer damages a file: bytes put in somewhere; or, in JSON and YAML, a value changed."""

from __future__ import annotations

import json
import sys
from typing import Any

DEEP = 100_000
"""Levels of nesting at which a parser that calls itself ends the process or gives up."""


def damaged(give: Any, content: bytes, is_json: bool) -> bytes:
    """Return a file's content with one fault in it.

    Args:
        give: the fuzzer's data provider, which makes every choice.
        content: the honest content.
        is_json: whether a value may be changed in place of bytes.
    """
    if not is_json or give.ConsumeProbability() < 0.3:
        return _other_bytes(give, content)
    record = json.loads(content)
    holder, key = _some_place(give, record)
    text = give.ConsumeUnicode(24)  # half a surrogate pair included: JSON can hold one
    values = [
        *(text, give.ConsumeInt(8), give.ConsumeFloat(), None, True, [], {}, [text], {text: 1}),
        *([[text]], "", -1, 10**12, 10**300, float("nan"), "x" * 5000),
    ]
    value = give.PickValueInList(values)
    if holder is None:
        return json.dumps(value).encode()
    is_renamed = isinstance(holder, dict) and give.ConsumeProbability() < 0.1
    holder[text if is_renamed else key] = value
    return json.dumps(record).encode()


def _other_bytes(give: Any, content: bytes) -> bytes:
    start = give.ConsumeIntInRange(0, len(content))
    whole = [b"", b"[" * DEEP, b'{"a":' * DEEP, content[:start], content + content]
    if give.ConsumeProbability() < 0.1:
        return bytes(give.PickValueInList(whole))
    end = start + give.ConsumeIntInRange(0, 24)
    return bytes(content[:start] + give.ConsumeBytes(24) + content[end:])


def _some_place(give: Any, record: Any) -> tuple[Any, Any]:
    """Return a dict or list inside a record and a key of it; None and None for the record."""
    holder, key = None, None
    node = record
    while isinstance(node, dict | list) and node and give.ConsumeProbability() < 0.8:
        holder = node
        key = give.PickValueInList(
            sorted(node) if isinstance(node, dict) else list(range(len(node)))
        )
        node = node[key]
    return holder, key


assert sys.getrecursionlimit() < DEEP
