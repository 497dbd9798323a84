from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import re
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dynarank.errors import UserError
from dynarank.tasks.files import READERS, read_file, write_file

FIELD = "task.train_file"
Columns = dict[str, list[Any]]


def read(path: Path, content: str | bytes | None = None) -> Columns:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    columns: Columns = read_file(FIELD, str(path)).to_dict()
    return columns


def refusal(path: Path, content: str | bytes | None = None) -> str:
    """What the error says after the field's name and value."""
    with pytest.raises(UserError) as raised:
        read(path, content)
    message, start = str(raised.value), f"{FIELD} = {path}: "
    assert message.startswith(start)
    return message.removeprefix(start)


READABLE_CSV = {
    "semicolons": ("a;b\n1,5;x\n2;y, z\n", {"a": ["1,5", "2"], "b": ["x", "y, z"]}),
    "semicolons and quotes": ('a;b\n"1;5";x\n', {"a": ["1;5"], "b": ["x"]}),
    "tabs": ("a\tb\n1\tx, y\n", {"a": ["1"], "b": ["x, y"]}),
    "a semicolon in one column": ("a\nx;y\n", {"a": ["x;y"]}),
    "trailing empty columns": ("a,b,,\n1,x,,\n2,y,,\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "trailing separators in rows": ("a,b\n1,x,\n2,y,,\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "pandas' row numbers": (",a,b\n0,1,x\n1,2,y\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "blanks in the header": (" a , b\n1, x\n", {"a": ["1"], "b": [" x"]}),
    "plain": ("a,b\n1,x\n2,y\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "quoted": ('a,b\n1,"x, ""y"" z"\n', {"a": ["1"], "b": ['x, "y" z']}),
    "line breaks in a field": (
        'a,b\n"x\ny\r\nz",1\nw,2\n',
        {"a": ["x\ny\r\nz", "w"], "b": ["1", "2"]},
    ),
    "byte order mark": ("\ufeffa,b\n1,x\n", {"a": ["1"], "b": ["x"]}),
    "byte order mark and quotes": ('\ufeff"a","b"\n1,x\n', {"a": ["1"], "b": ["x"]}),
    "CRLF": ("a,b\r\n1,x\r\n2,y\r\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "CR": ("a,b\r1,x\r2,y\r", {"a": ["1", "2"], "b": ["x", "y"]}),
    "blank lines": ("\n\na,b\n\n1,x\n\n\n2,y\n\n", {"a": ["1", "2"], "b": ["x", "y"]}),
    "no line break at the end": ("a,b\n1,x", {"a": ["1"], "b": ["x"]}),
    "empty fields": ('a,b\n,""\n', {"a": [""], "b": [""]}),
    "one column, quoted and empty": ('a\n""\nx\n', {"a": ["", "x"]}),
    "spaces stay": ("a,b\n x , y\n", {"a": [" x "], "b": [" y"]}),
    "numbers stay texts": ("a,b\n01,1e3\nNA,nan\n", {"a": ["01", "NA"], "b": ["1e3", "nan"]}),
    "beyond ASCII": ("a,b\nțară,日本 🐈\u2028x\n", {"a": ["țară"], "b": ["日本 🐈\u2028x"]}),
}


@pytest.mark.parametrize("name", READABLE_CSV)
def test_csv_is_read_to_the_letter(name: str, tmp_path: Path) -> None:
    content, columns = READABLE_CSV[name]
    assert read(tmp_path / "a.csv", content) == columns


@pytest.mark.parametrize(
    "name", ["quoted", "line breaks in a field", "CRLF", "numbers stay texts", "beyond ASCII"]
)
def test_csv_is_read_as_pandas_does(name: str, tmp_path: Path) -> None:
    content = READABLE_CSV[name][0]
    frame = pd.read_csv(io.StringIO(content, newline=""), dtype=str, keep_default_na=False)
    assert read(tmp_path / "a.csv", content) == frame.to_dict("list")


def test_a_long_field_is_read_whole(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert read(tmp_path / "a.csv", f'a,b\n"{text}",1\n') == {"a": [text], "b": ["1"]}


def test_a_quotation_mark_in_tsv_swallows_nothing(tmp_path: Path) -> None:
    content = 'a\tb\n"never closed\t1\n"closed"\t2\nsaid "so", he\t3\n'
    assert read(tmp_path / "a.tsv", content) == {
        "a": ['"never closed', '"closed"', 'said "so", he'],
        "b": ["1", "2", "3"],
    }


PANDAS_TEXTS = ['they said "good" film', "bad film", 'a "', "two\nlines", "a\ttab", ""]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tsv_is_read_as_pandas_wrote_it(quoting: Any, tmp_path: Path) -> None:
    columns = {"text": PANDAS_TEXTS, "n": [str(n) for n in range(len(PANDAS_TEXTS))]}
    pd.DataFrame(columns).to_csv(tmp_path / "a.tsv", sep="\t", index=False, quoting=quoting)
    assert read(tmp_path / "a.tsv") == columns


def test_tsv_with_quotation_marks_in_texts_is_read_to_the_letter(tmp_path: Path) -> None:
    texts = ['"good"', 'they said "good"', '"a ""b"""']
    (tmp_path / "a.tsv").write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in texts))
    assert read(tmp_path / "a.tsv")["text"] == texts


@pytest.mark.parametrize("ending", [".CSV", ".Tsv", ".JSONL", ".PARQUET"])
def test_endings_may_have_capital_letters(ending: str, tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y"}]
    write_file(tmp_path / f"a{ending}", rows)
    assert read(tmp_path / f"a{ending}") == {"a": ["x"], "b": ["y"]}


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    lines = [{"t": "a", "n": 1, "x": "\ud83d"}, {"t": "b", "n": "one", "x": [1, "two"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_file(FIELD, str(tmp_path / "a.jsonl"), {"t"}).to_dict() == {"t": ["a", "b"]}
    with pytest.raises(UserError, match=r"a\.jsonl: row 1: n = 'one' is of the type str"):
        read_file(FIELD, str(tmp_path / "a.jsonl"), {"t", "n"})


def test_tsv_knows_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tsv", "\ufeffa\tb\r\n\r\n1\t\r\n2\ty\r\n") == {
        "a": ["1", "2"],
        "b": ["", "y"],
    }


def test_json_lines_keep_types_nesting_and_missing_keys(tmp_path: Path) -> None:
    rows = [
        {"t": "a\nb", "n": 1, "d": {"en": "x", "ro": "y"}, "l": [1, 2]},
        {"t": "c", "l": [], "late": True},
    ]
    content = "\ufeff" + json.dumps(rows[0]) + "\r\n\n" + json.dumps(rows[1])
    assert read(tmp_path / "a.jsonl", content) == {
        "t": ["a\nb", "c"],
        "n": [1, None],
        "d": [{"en": "x", "ro": "y"}, None],
        "l": [[1, 2], []],
        "late": [None, True],
    }


def test_json_lines_line_separators_inside_a_text_stay(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", '{"t": "a\u2028b\u0085c"}\n') == {"t": ["a\u2028b\u0085c"]}


def test_parquet_keeps_types(tmp_path: Path) -> None:
    columns = {
        "t": ["a", None],
        "n": [1, 2],
        "x": [0.5, None],
        "f": [True, False],
        "l": [[1], []],
        "d": [{"k": "v"}] * 2,
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == columns


def test_parquet_in_a_folder_with_an_equals_sign_gains_no_column(tmp_path: Path) -> None:
    (tmp_path / "seed=3").mkdir()
    pd.DataFrame({"t": pd.Categorical(["a", "b", "a"])}).to_parquet(
        tmp_path / "seed=3" / "a.parquet"
    )
    assert read(tmp_path / "seed=3" / "a.parquet") == {"t": ["a", "b", "a"]}


def test_the_home_folder_may_be_abbreviated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("a\n1\n")
    assert read_file(FIELD, "~/a.csv").to_dict() == {"a": ["1"]}


ROWS = [
    {
        "id": 0,
        "text": 'he said "no", then',
        "score": 0.25,
        "tags": ["ă", "b"],
        "nested": {"k": "v"},
    },
    {"id": 1, "text": '"quoted"', "score": -1.5, "tags": ["c"], "nested": {"k": "日"}},
    {"id": 2, "text": " spaces ", "score": 3.0, "tags": ["d"], "nested": {"k": ""}},
]
AS_TEXT = [
    {
        name: json.dumps(v, ensure_ascii=False) if isinstance(v, (list, dict)) else str(v)
        for name, v in row.items()
    }
    for row in ROWS
]


def columns_of(rows: list[dict[str, Any]]) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_texts_survive_a_round_trip(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    write_file(path, ROWS)
    assert read(path) == columns_of(AS_TEXT)
    how: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE} if ending == ".tsv" else {}
    assert pd.read_csv(path, dtype=str, keep_default_na=False, **how).to_dict("records") == AS_TEXT


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_types_survive_a_round_trip(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    write_file(path, ROWS)
    assert read(path) == columns_of(ROWS)
    if ending == ".parquet":
        assert parquet.read_table(path).to_pylist() == ROWS
    else:
        assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
        assert "日" in path.read_text()


def test_nothing_becomes_an_empty_field(tmp_path: Path) -> None:
    for ending in (".csv", ".tsv"):
        write_file(tmp_path / f"a{ending}", [{"a": None, "b": 1}])
        assert read(tmp_path / f"a{ending}") == {"a": [""], "b": ["1"]}


def test_what_json_has_no_form_for_is_written_as_text(tmp_path: Path) -> None:
    """As a parquet file may hold it, and predict --keep-all carries it over."""
    day = dt.datetime(2024, 1, 31, 12)
    row = {"when": day, "raw": b"a", "exact": Decimal("1.50"), "none": math.nan, "all": [day]}
    text = "2024-01-31T12:00:00"
    write_file(tmp_path / "a.jsonl", [row])
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    wanted = {"when": text, "raw": "b'a'", "exact": "1.50", "none": None, "all": [text]}
    assert json.loads(line) == wanted
    write_file(tmp_path / "a.csv", [row])
    assert read(tmp_path / "a.csv")["all"] == [f'["{text}"]']


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@settings(deadline=None, max_examples=40)
@given(texts=TEXTS)
@example(texts=["carriage\rreturn", "line\nbreak", "both\r\n", '"', ""])
def test_any_text_survives_a_round_trip(
    ending: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    write_file(path, [{"n": str(n), "text": text} for n, text in enumerate(texts)])
    assert read(path)["text"] == texts


@pytest.mark.parametrize("text", ["line\nbreak", "tab\there", "carriage\rreturn"])
def test_what_tsv_cannot_hold_is_refused_before_anything_is_written(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tsv"
    with pytest.raises(UserError, match=r"--output .*a\.tsv: .* holds a tab or a line break"):
        write_file(path, [{"text": "good"}, {"text": text}])
    assert not path.exists()


def test_an_unknown_ending_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(
        UserError,
        match=r"--output .*notes\.txt: the ending must be one of \.csv, \.tsv, \.jsonl, \.parquet",
    ):
        write_file(path, ROWS)
    assert path.read_text() == "precious"


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.csv") == f"there is no such file (looked in {tmp_path})"


@pytest.mark.parametrize("name", ["a.txt", "a", "a.xlsx", "a.json", "a.csv.gz"])
def test_an_unknown_ending_names_the_known_ones(name: str, tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / name, "a\n1\n")
        == "the ending must be one of .csv, .tsv, .jsonl, .parquet"
    )


@pytest.mark.parametrize("ending", READERS)
def test_an_empty_file_is_refused(ending: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / f"a{ending}", "") == "the file is empty"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "a,b\n"),
        ("a.tsv", "a\tb\r\n\r\n"),
        ("b.csv", "\n\n"),
        ("a.jsonl", "\n \n"),
        ("c.csv", "\ufeff"),
    ],
)
def test_a_file_without_rows_is_refused(name: str, content: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / name, content) == "the file has no rows"


def test_a_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": []}).to_parquet(tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == "the file has no rows"


def zipped() -> bytes:
    """What an .xlsx is underneath."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<row>some cells</row>" * 50)
    return data.getvalue()


def parquet_bytes() -> bytes:
    data = io.BytesIO()
    pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}).to_parquet(data)
    return data.getvalue()


NOT_TEXT = r"(line 1 is not UTF-8 text|holds binary data), so it is no \.csv file"
NO_DOCUMENT = r"one JSON object a line is meant, not one document"
BROKEN: list[tuple[str, str | bytes, str]] = [
    ("few.csv", 'a,b\n"1\n1",x\n\n2\n', r"row 1 \(line 5\) has 1 fields where the header has 2"),
    ("many.csv", "a,b\n1,x\n2,y,z\n", r"row 1 \(line 3\) has 3 fields where the header has 2"),
    ("few.tsv", "a\tb\n1\tx\n2 y\n", r"row 1 \(line 3\) has 1 fields where the header has 2"),
    ("twice.csv", "a,b,a\n1,2,3\n", r"the header names a column twice: a, b, a"),
    ("open.csv", 'a,b\n1,x\n"2,y\n3,z\n', r"line 3: a quotation mark opens a field, and none"),
    ("open_first.csv", '"a,b\n1,x\n', r"line 1: a quotation mark opens a field, and none"),
    (
        "huge.jsonl",
        '{"n": 1}\n{"n": 99999999999999999999}\n',
        r"row 1: n = 99999999999999999999 is a whole number beyond 64 bits, which only",
    ),
    (
        "endless.jsonl",
        '{"n": ' + "9" * 5000 + "}\n",
        r"row 0 \(line 1\) holds a number of too many digits",
    ),
    ("astray.csv", 'a,b\n"x"y,1\n', r"line 2: ',' expected after '\"'"),
    (
        "broken.jsonl",
        '{"a": 1}\n\n{"a": 2\n',
        r"row 1 \(line 3\) is not JSON: Expecting ',' delimiter$",
    ),
    ("text.jsonl", "a,b\n1,2\n", r"row 0 \(line 1\) is not JSON: Expecting value$"),
    ("number.jsonl", '{"a": 1}\n7\n', r"row 1 \(line 2\) is int, not an object of columns"),
    (
        "array.jsonl",
        '[\n {"a": 1},\n {"a": 2}\n]\n',
        rf"row 0 \(line 1\) is not JSON.*{NO_DOCUMENT}",
    ),
    ("begun.jsonl", '[{"a": 1},\n{"a": 2}]\n', rf"row 0 \(line 1\) is not JSON.*{NO_DOCUMENT}"),
    (
        "one_line.jsonl",
        '[{"a": 1}, {"a": 2}]\n',
        r"row 0 \(line 1\) is list, not an object of columns",
    ),
    ("document.jsonl", '{\n "data": []\n}\n', rf"row 0 \(line 1\) is not JSON.*{NO_DOCUMENT}"),
    (
        "mixed.jsonl",
        '{"a": 1}\n{"a": "x"}\n',
        r"row 1: a = 'x' is of the type str, and the rows before it hold int",
    ),
    (
        "half.jsonl",
        '{"t": "good"}\n{"t": "great \\ud83d"}\n{"t": "bad"}\n',
        r"row 1: 't' = 'great \\ud83d' holds half of a surrogate pair, which is no text",
    ),
    (
        "half_name.jsonl",
        '{"t": "good"}\n{"\\ude00": 1}\n',
        r"row 0: '\\ude00' = .* holds half of a surrogate pair",
    ),
    (
        "unnamed.csv",
        "a,b,\n1,x,\n2,y,z\n",
        r"row 1 \(line 3\) has 'z' in column 3, which has no name",
    ),
    ("csv.parquet", "a,b\n1,2\n", r"is no parquet file, whatever its ending says"),
    ("cut.parquet", parquet_bytes()[:60], r"ArrowInvalid: "),
    ("parquet.csv", parquet_bytes(), NOT_TEXT),
    ("zip.csv", zipped(), NOT_TEXT),
    ("utf16.csv", "a,b\n1,x\n".encode("utf-16"), NOT_TEXT),
    ("nul.csv", "a,b\n1,\0\n", r"holds binary data, so it is no \.csv file"),
    (
        "latin.csv",
        "a,b\n1,x\n2,é\n".encode("latin-1"),
        r"line 3 is not UTF-8 text.*Save it as UTF-8",
    ),
    ("latin.jsonl", '{"a": "é"}\n'.encode("latin-1"), r"line 1 is not UTF-8 text"),
    ("late.tsv", b"a\tb\n" + b"1\tx\n" * 20_000 + b"2\t\xe9\n", r"line 20002 is not UTF-8 text"),
    ("lines.csv", '{"a": "x", "b": 1}\n', r"begins with '{': it looks like JSON, not like \.csv"),
    (
        "compact.csv",
        '{"a":"x","b":1}\n{"a":"y","b":2}\n',
        r"begins with '{': it looks like JSON, not like \.csv",
    ),
    ("array.tsv", '[\n{"a": 1}\n]\n', r"begins with '\[': it looks like JSON, not like \.tsv"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_file_is_named_with_what_breaks_it(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path / name, content)
    assert re.match(said, message)
    assert "\n" not in message
