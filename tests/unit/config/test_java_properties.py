"""Java's properties format, as its documentation describes it."""

import pytest

from snooze.common.java_properties import parse_properties


def entries(text: str) -> list[tuple[str, str]]:
    found, mistakes = parse_properties(text)
    assert mistakes == []
    return [(entry.key, entry.value) for entry in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Truth = Beauty", [("Truth", "Beauty")]),
        (" Truth:Beauty", [("Truth", "Beauty")]),
        ("Truth                    :Beauty", [("Truth", "Beauty")]),
        ("Truth Beauty", [("Truth", "Beauty")]),
        ("Truth\tBeauty", [("Truth", "Beauty")]),
        (
            "fruits  apple, banana, \\\n    cantaloupe, \\\r\n  durian",
            [("fruits", "apple, banana, cantaloupe, durian")],
        ),
        ("cheeses", [("cheeses", "")]),
        ("cheeses=", [("cheeses", "")]),
        ("a==b", [("a", "=b")]),
        ("a = = b", [("a", "= b")]),
        ("a\\:b\\=c\\ d = e", [("a:b=c d", "e")]),
        ("# no = entry\n! neither = this\n\n  # nor = this\na=b", [("a", "b")]),
        ("a = b # part of it", [("a", "b # part of it")]),
        ("# a comment does not go on \\\na=b", [("a", "b")]),
        ("a = 1\\\n# not a comment here", [("a", "1# not a comment here")]),
        ("a=b\\\\\nc=d", [("a", "b\\"), ("c", "d")]),
        ("a=b\\", [("a", "b")]),
        ("a=\\u00fc\\t\\n\\q", [("a", "ü\t\nq")]),
        ("a=\\ud83d\\ude00", [("a", "😀")]),
        ("a=1\ra=2", [("a", "1"), ("a", "2")]),
        ("=value", [("", "value")]),
    ],
)
def test_examples(text: str, expected: list[tuple[str, str]]) -> None:
    assert entries(text) == expected


def test_lines_are_counted_from_where_an_entry_begins() -> None:
    found, _ = parse_properties("# x\na = 1\\\n2\n\nb = 3")
    assert [(entry.key, entry.line) for entry in found] == [("a", 2), ("b", 5)]


def test_a_broken_escape_is_told_with_its_line_and_the_rest_is_read() -> None:
    found, mistakes = parse_properties("a = \\u12\nb = 2")
    assert [entry.key for entry in found] == ["b"]
    assert [mistake.line for mistake in mistakes] == [1]
