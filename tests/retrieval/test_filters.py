from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from foveal.errors import BadInput
from retrieval.filter_engines import Column, milvus_meta
from retrieval.filter_tree import COMPARE, Compare, Filter, Has, In, IsNull, Like, combined
from retrieval.filters import MAX_DEPTH, MAX_LENGTH, MAX_LEVELS, MAX_MEMBERS, parse

Record = Mapping[str, str | int | float | None]

COLUMNS = {
    "id": "text",
    "width": "number",
    "camera": "text",
    "hour": "number",
    "taken": "time",
    "tags": "text",
    "gps_lat": "number",
    "gps_lon": "number",
    "Größe in": "text",
}
ARROW = {"text": pa.string(), "time": pa.string(), "number": pa.float64()}
SCHEMA = pa.schema([(name, pa.int64() if name == "width" else ARROW[kind]) for name, kind in COLUMNS.items()])


def column(name: str) -> Column:
    return Column(name, COLUMNS[name])


def lance_finder(folder: Path | str, records: Sequence[Record]) -> Callable[[Filter], list[int]]:
    """What Lance finds in a table of `records`: for a filter, the positions that it keeps."""
    table = pa.Table.from_pylist(records, schema=SCHEMA).append_column("at", pa.array(range(len(records))))
    dataset: Any = lance.write_dataset(table, f"{folder}/table.lance")
    return lambda found: sorted(dataset.to_table(columns=["at"], filter=f"({found.sql()})")["at"].to_pylist())


RECORDS: list[Record] = [
    {"id": "0", "width": 640, "camera": "north", "hour": 6.0, "taken": "2026-11-01T23:59:59Z", "tags": "night; rain"},
    {"id": "1", "width": 640, "camera": "south", "hour": 18.5, "taken": "2026-11-02T00:00:00Z", "tags": "midnight"},
    {
        "id": "2",
        "width": 800,
        "camera": "north",
        "hour": None,
        "taken": "2026-11-02T07:30:00Z",
        "tags": "rain;night ;x",
    },
    {"id": "3", "width": 800, "camera": None, "hour": 22.0, "taken": None, "tags": None},
    {"id": "4", "width": 1, "camera": "it's 100%", "hour": 0.0, "gps_lat": 59.3, "gps_lon": 18.0, "tags": ""},
    {"id": "5", "width": 2, "camera": "a_b", "hour": 1.0, "gps_lat": -17.0, "gps_lon": 179.5, "Größe in": "XL"},
    {"id": "6", "width": 3, "camera": "a\\b", "hour": 2.0, "gps_lat": -17.0, "gps_lon": -179.5, "tags": " night "},
]


@pytest.fixture(scope="module")
def found_by_lance(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Filter], list[int]]:
    return lance_finder(tmp_path_factory.mktemp("filters"), RECORDS)


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("camera = 'north'", [0, 2]),
        ("camera == 'north' and hour <= 6", [0]),
        ("CAMERA <> 'north'", [1, 4, 5, 6]),
        ("NOT camera = 'north'", [1, 4, 5, 6]),
        ("NOT (camera = 'north' OR hour > 18.4)", [4, 5, 6]),
        ("NOT (camera = 'north' AND hour > 7)", [0, 1, 4, 5, 6]),
        ("camera = 'south' OR camera = 'north' AND hour = 6", [0, 1]),
        ("(camera = 'south' OR camera = 'north') AND hour = 6", [0]),
        ("camera IN ('north', 'a_b')", [0, 2, 5]),
        ("camera NOT IN ('north', 'a_b')", [1, 4, 6]),
        ("camera NOT IN ('north', 'south') OR camera NOT IN ('a_b', 'x')", [0, 1, 2, 4, 5, 6]),
        ("hour BETWEEN 1 AND 6 AND width = 640", [0]),
        ("hour NOT BETWEEN 1 AND 20", [3, 4]),
        ("hour > -1.5e0 AND hour < +1.0", [4]),
        ("width > 2.5 AND width <= 640.0", [0, 1, 6]),
        ("width IN (1, 2.5, 3) OR width > 1e300", [4, 6]),
        ("camera LIKE '%th'", [0, 1, 2]),
        ("camera NOT LIKE '_o%'", [4, 5, 6]),
        ("camera LIKE 'a_b'", [5, 6]),
        (r"camera LIKE 'a\_b'", [5]),
        (r"camera LIKE 'a\\_'", [6]),
        (r"camera LIKE '%0\%'", [4]),
        ("camera = 'it''s 100%'", [4]),
        ("camera IS NULL", [3]),
        ("hour is not null and not hour is not null", []),
        ("HAS(tags, 'night')", [0, 2, 6]),
        ("has(tags, ' rain ')", [0, 2]),
        ("NOT HAS(tags, 'night')", [1, 4]),
        ("taken < '2026-11-02'", [0]),
        ("taken BETWEEN '2026-11-02' AND '2026-11-02 09:30+02:00'", [1, 2]),
        ("taken = '2026-11-02T08:30:00+01:00'", [2]),
        ("taken = '20261102T073000.999Z'", [2]),
        ("taken LIKE '2026-11-01%'", [0]),
        ("INSIDE(59.2, 17.8, 59.5, 18.3)", [4]),
        ("INSIDE(-20, 179, -10, -179)", [5, 6]),
        ("NOT INSIDE(-20, -180, -10, 180)", [4]),
        ("\"Größe in\" = 'XL'", [5]),
        ("\"camera\" = 'north' AND\n\tID = '2'", [2]),
    ],
)
def test_a_filter_keeps_the_same_rows_in_python_and_lance(
    found_by_lance: Callable[[Filter], list[int]], expression: str, kept: list[int]
) -> None:
    found = parse(expression, COLUMNS)
    assert [i for i, record in enumerate(RECORDS) if found.matches(record)] == kept
    assert found_by_lance(found) == kept
    assert parse(str(found), COLUMNS) == found


odd = st.text(alphabet="ab%_\\'\"`; \n\x00.*|é中", max_size=4)
numbers = st.sampled_from([-1.5, 0.0, 1e-7, 2.0, 2.5, 18.0, 1e17, 2.0**53, 1e300])
times = st.sampled_from([f"2026-11-0{day}T{hour}:30:00Z" for day in (1, 2) for hour in ("00", "23")])
tags = odd.map(lambda text: text.replace(";", "").strip(" ")).filter(bool)
patterns = st.lists(st.sampled_from(["%", "_", "\\", "a", "b", "'", "\n", "é", "\\%", "\\_"]), max_size=5).map("".join)
literals = {"text": odd, "number": numbers, "time": times}
names = st.sampled_from(sorted(COLUMNS))
textual = st.sampled_from([name for name, kind in COLUMNS.items() if kind == "text"]).map(column)


@st.composite
def on_one_column(draw: st.DrawFn) -> Filter:
    where = column(draw(names))
    literal = literals[where.kind]
    inverse = draw(st.booleans())
    kinds: list[st.SearchStrategy[Filter]] = [
        st.builds(Compare, st.just(where), st.sampled_from(sorted(COMPARE)), literal),
        st.builds(In, st.just(where), st.lists(literal, min_size=1, max_size=4).map(tuple), st.just(inverse)),
        st.builds(Like, textual, patterns, st.just(inverse)),
        st.builds(Has, textual, tags, st.just(inverse)),
        st.just(IsNull(where, inverse)),
    ]
    return draw(st.one_of(kinds))


filters: st.SearchStrategy[Filter] = st.recursive(
    on_one_column(),
    lambda part: st.one_of(
        st.builds(combined, st.sampled_from(["AND", "OR"]), st.lists(part, min_size=2, max_size=3)),
        part.map(lambda found: found.negated()),
    ),
    max_leaves=6,
)
several_tags = st.lists(tags | st.sampled_from([" ", " a", "b "]), max_size=3).map(";".join)
stored = {"text": odd | several_tags, "number": numbers | st.just(-0.0), "time": times}
records: st.SearchStrategy[Record] = st.fixed_dictionaries(
    {name: st.none() | (st.integers(-3, 19) if name == "width" else stored[kind]) for name, kind in COLUMNS.items()}
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking whole tables takes minutes
)
@given(st.lists(records, min_size=12, max_size=12), st.lists(filters, min_size=8, max_size=8))
def test_lance_finds_what_python_matches_and_text_round_trips(table: list[Record], wanted: list[Filter]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found_by_lance = lance_finder(folder, table)
        for found in wanted:
            assert parse(str(found), COLUMNS) == found
            assert found.negated().negated() == found
            kept = [i for i, record in enumerate(table) if found.matches(record)]
            assert found_by_lance(found) == kept, str(found)
            turned = found_by_lance(found.negated())
            assert turned == [i for i, record in enumerate(table) if found.truth(record) is False], str(found)


INJECTIONS = [
    "' OR 1=1 --",
    "'; DROP TABLE x; --",
    "''",
    "\\",
    "\\'",
    "a\\",
    '"',
    '" or "1"=="1',
    "`id`",
    "%",
    "_",
    "100%_\\%",
    "(^|;).*$",
    "[a-z]{2}+?",
    "line\nbreak\r\n\ttab",
    "nul\x00byte",
    "ünïcødé 猫 🐈 \u202e \u0301",
    "/* x */ -- y",
]


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Filter], list[int]]:
    records: list[Record] = [{"id": text, "camera": f"x{text}", "tags": f"a; {text} ;b"} for text in INJECTIONS]
    return lance_finder(tmp_path_factory.mktemp("injected"), records)


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_is_only_ever_text(injected: Callable[[Filter], list[int]], text: str) -> None:
    at = [INJECTIONS.index(text)]
    quoted = text.replace("'", "''")
    plain = "".join(f"\\{c}" if c in "\\%_" else c for c in quoted)
    assert injected(parse(f"id = '{quoted}'", COLUMNS)) == at
    assert injected(parse(f"id IN ('{quoted}', 'no such')", COLUMNS)) == at
    assert injected(parse(f"camera LIKE '_{plain}'", COLUMNS)) == at
    if ";" not in text:
        assert injected(parse(f"HAS(tags, '{quoted}')", COLUMNS)) == at


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        (" ", ["empty", "1 to 10000 characters", "received 1"]),
        (
            "camra = 'x'",
            ["filter \"camra = 'x'\": there is no column camra", "Did you mean camera?", "over id (text), "],
        ),
        ("zzz = 1", ["there is no column zzz", "hour (number), taken (time)"]),
        (
            "camera = ",
            ["at character 10", "expected a text in single quotes there", "hour (number)", "received the end"],
        ),
        ("camera = = 'x'", ["at character 10", "received ="]),
        ("camera", ["at character 7", "boolean"]),
        ("hour > 'noon'", ["hour is a number column", "expected a number", "received 'noon'", "without quotes"]),
        ("camera = 3", ["camera is a text column", "expected a text in single quotes", "received 3", "single quotes"]),
        ("camera = north", ["at character 10", "received north", "Put text in single quotes: 'north'."]),
        ('camera = "north"', ["Put text in single quotes: 'north'."]),
        ("hour = NULL", ["Write hour IS NULL."]),
        ("hour = 1e999", ["expected a number", "received 1e999"]),
        ("taken > 2026", ["taken is a time column", "'2026-11-02 09:30:00+02:00'", "received 2026"]),
        ("taken > 'yesterday'", ["taken is a time column", "received 'yesterday'"]),
        ("taken > '11/30/2026'", ["taken is a time column", "received '11/30/2026'"]),
        ("taken > '1761234567890'", ["taken is a time column"]),
        ("taken > '0001-01-01 00:00+05:00'", ["taken is a time column"]),
        ("1=1; drop table x", ["at character 1", "expected a column", "received 1"]),
        ("hour > 3 LIMIT 1", ["at character 10", "expected AND, OR or the end", "received LIMIT"]),
        ("hour > 3; drop table x", ["at character 9", "received ;"]),
        ("id IN (SELECT id FROM t)", ["at character 8", "received SELECT"]),
        ("id IN ()", ["at character 8", "received )"]),
        ("width / 0 = 1", ["at character 7", "received /"]),
        ("hour > 1--2", ["at character 9", "received -"]),
        ("hour > 18h", ["at character 8", "expected a number"]),
        ("camera = 'north", ["at character 10", "received ' that nothing closes"]),
        ("(hour > 3", ["at character 10", "expected )"]),
        ("hour > 3)", ["at character 9"]),
        ("hour BETWEEN 3 OR 5", ["at character 16", "expected AND"]),
        ("hour IS 3", ["at character 9", "expected NULL"]),
        ("AND hour > 3", ["at character 1", "expected a column", "received AND"]),
        ("lower(camera) = 'x'", ["there is no function lower", "expected HAS or INSIDE"]),
        ("hour LIKE '1%'", ["hour is a number column", "text or time"]),
        ("HAS(hour, '1')", ["hour is a number column"]),
        ("HAS(tags, 'a;b')", ["one tag", "without ;", "'a;b'"]),
        ("HAS(tags, ' ')", ["one tag"]),
        ("INSIDE(1, 2, 3)", ["lat_min, lon_min, lat_max, lon_max", "received 1, 2, 3"]),
        ("INSIDE(50, 0, 40, 10)", ["lat_min <= lat_max"]),
        ("INSIDE(0, 0, 1, 200)", ["in degrees"]),
        ("id = '\ud800'", ["not valid text"]),
    ],
)
def test_bad_input_says_what_was_expected(expression: str, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse(expression, COLUMNS)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("hour > 1 AND " * 2000 + "hour > 1", f"1 to {MAX_LENGTH} characters"),
        ("(" * (MAX_DEPTH + 1) + "hour > 1" + ")" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} brackets"),
        ("(" * 9_000, f"at most {MAX_DEPTH} brackets"),
        ("NOT " * 2_000 + "hour > 1", f"at most {MAX_DEPTH} brackets"),
        (f"hour IN ({', '.join('1' * (MAX_MEMBERS + 1))})", f"at most {MAX_MEMBERS} values"),
        ("(hour > 1 AND (id = 'a' OR " * 11 + "hour > 1" + "))" * 11, f"at most {MAX_LEVELS} ANDs and ORs"),
    ],
)
def test_what_is_too_large_is_refused(expression: str, part: str) -> None:
    with pytest.raises(BadInput, match=part) as caught:
        parse(expression, COLUMNS)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "expression",
    [
        "(" * MAX_DEPTH + "hour > 1" + ")" * MAX_DEPTH,
        "NOT " * MAX_DEPTH + "hour > 1",
        f"hour IN ({'1, ' * (MAX_MEMBERS - 1)} 6)",
        "(hour > 1 AND (id = 'a' OR " * 10 + "width NOT IN (2, 2.5)" + "))" * 10,
        "(hour > 1 AND (id = 'a' OR " * 10 + "NOT HAS(tags, 'night')" + "))" * 10,
        " OR ".join(f"hour={i}" for i in range(700)),
    ],
)
def test_what_is_just_small_enough_reaches_lance(
    found_by_lance: Callable[[Filter], list[int]], expression: str
) -> None:
    found = parse(expression, COLUMNS)
    assert found_by_lance(found) == [i for i, record in enumerate(RECORDS) if found.matches(record)]


def test_a_pattern_of_many_wildcards_takes_no_time() -> None:
    found = parse(f"id LIKE '{'%a' * 2000}%b'", COLUMNS)
    assert not found.matches({"id": "a" * 5000})
    assert found.matches({"id": "a" * 5000 + "b"})


def test_names_are_taken_exactly_first_and_then_in_any_case() -> None:
    both = {"Site": "text", "site": "number", "Line": "text"}
    assert parse("site = 1 AND Site = 'a' AND line = 'b'", both).columns == ("site", "Site", "Line")
    with pytest.raises(BadInput, match=r"no column SITE.*Did you mean Site or site"):
        parse("SITE = 1", both)
    words = {"in": "text", "has": "number", "select": "text"}
    found = parse("\"in\" = 'a' OR has = 1 OR select = 'b'", words)
    assert str(found) == "\"in\" = 'a' OR has = 1 OR select = 'b'"
    assert found.columns == ("in", "has", "select")


def test_values_count_as_their_column_keeps_them() -> None:
    assert parse("camera = '7'", COLUMNS).matches({"camera": 7})
    assert parse("hour IS NULL", COLUMNS).matches({"hour": "noon"})
    assert parse("hour IS NULL", COLUMNS).matches({"hour": float("nan")})
    assert not parse("hour != 3", COLUMNS).matches({})


@pytest.mark.parametrize(
    ("expression", "canonical"),
    [
        ("not(hour<>1 or camera='a')", "hour = 1 AND camera != 'a'"),
        ("a = 1 AND (a = 2 AND (a = 3))", "a = 1 AND a = 2 AND a = 3"),
        ("hour between 1 and 2.50", "hour >= 1 AND hour <= 2.5"),
        ("taken > '2026-11-02 09:30+02:00'", "taken > '2026-11-02T07:30:00Z'"),
        ("NOT has(tags, ' night')", "NOT HAS(tags, 'night')"),
        ("hour = -0.0 OR hour = 1e20", "hour = 0 OR hour = 1e+20"),
        (
            "INSIDE(-20, 179, -10, -179)",
            "gps_lat >= -20 AND gps_lat <= -10 AND (gps_lon >= 179 OR gps_lon <= -179)",
        ),
    ],
)
def test_canonical_text(expression: str, canonical: str) -> None:
    assert str(parse(expression, {**COLUMNS, "a": "number"})) == canonical


@pytest.mark.parametrize(
    ("expression", "milvus"),
    [
        ("camera = 'north' AND hour >= 18", 'meta["camera"] == "north" and meta["hour"] >= 18'),
        ("id = 'x' OR width < 640.0", 'id == "x" or width < 640'),
        ("camera != 'a'", '(exists meta["camera"] and meta["camera"] != "a")'),
        ("NOT (camera = 'a' OR width = 3)", '(exists meta["camera"] and meta["camera"] != "a") and width != 3'),
        ("NOT hour < 5", 'meta["hour"] >= 5'),
        ("hour IN (1, 2.5)", '(meta["hour"] == 1 or meta["hour"] == 2.5)'),
        ("hour NOT IN (1, 2)", '(exists meta["hour"] and meta["hour"] != 1 and meta["hour"] != 2)'),
        ("width IN (1, 2) AND id NOT IN ('a')", 'width in [1, 2] and id not in ["a"]'),
        ("id NOT LIKE 'a%'", 'not (id like "a%")'),
        (r"camera LIKE '50\%_'", r'meta["camera"] like "50\\%_"'),
        ("camera IS NULL OR hour IS NOT NULL", 'not exists meta["camera"] or exists meta["hour"]'),
        ("id IS NULL", "id is null"),
        ("HAS(tags, 'night')", '(meta["tags"] == "night" or json_contains(meta["tags;"], "night"))'),
        (
            "NOT HAS(tags, 'night')",
            '(exists meta["tags"] and meta["tags"] != "night"'
            ' and (not exists meta["tags;"] or not json_contains(meta["tags;"], "night")))',
        ),
        ("camera = 'a\"\\\n\t''é'", r'''meta["camera"] == "a\"\\\n\t'é"'''),
        ('camera = \'" or "1"=="1\'', r'meta["camera"] == "\" or \"1\"==\"1"'),
        ("taken > '2026-11-02'", 'meta["taken"] > "2026-11-02T00:00:00Z"'),
        (
            "INSIDE(1, 179, 2, -179)",
            'meta["gps_lat"] >= 1 and meta["gps_lat"] <= 2 and (meta["gps_lon"] >= 179 or meta["gps_lon"] <= -179)',
        ),
    ],
)
def test_milvus_expressions(expression: str, milvus: str) -> None:
    assert parse(expression, COLUMNS).milvus() == milvus


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"camera LIKE 'a\\%'", r"backslash.*Write _"),
        ("width > 2.5", r"width with integers only"),
        ("HAS(id, 'a')", r"no tags in id"),
    ],
)
def test_what_milvus_cannot_do_is_refused(expression: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(expression, COLUMNS).milvus()


def test_milvus_keeps_the_tags_of_a_text_beside_it() -> None:
    assert milvus_meta({"tags": "night; rain", "camera": "north", "hour": 3, "note": " x"}) == {
        "tags": "night; rain",
        "camera": "north",
        "hour": 3,
        "note": " x",
        "tags;": ["night", "rain"],
        "note;": ["x"],
    }
