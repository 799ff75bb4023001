"""Lines of published tables and lists, names of recordings, and the questions made of labels."""

from __future__ import annotations

import json

import pytest

from paltrain.data.importers import ask, rows, youtube
from paltrain.data.importers.aside import Aside
from paltrain.errors import ManifestError


def test_names_of_a_piece_of_a_video():
    assert youtube.names_of("a", "30.000", "40.000") == [
        f"{y}a_{times}"
        for times in ("30.000_40.000", "30_40", "30000_40000", "30.000", "30", "30000")
        for y in ("", "Y")
    ]
    assert not youtube.is_seconds("x")
    assert not youtube.is_seconds("-1")


def test_broken_lines_of_a_table_are_set_aside(tmp_path):
    file = tmp_path / "t.csv"
    aside = Aside()
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"2, 3"\r\n\r\n4\r\n5,caf\xe9\r\n6,7\r\n')
    found = list(rows.read_rows(file, needs=("a",), aside=aside, name="t.csv"))
    assert [(row.line, row["a"], row["b"]) for row in found] == [(2, "1", "2, 3"), (6, "6", "7")]
    assert [(e["line"], e["reason"]) for e in aside.entries] == [
        (4, "1 fields for the columns a, b"),
        (5, "is not UTF-8: save the table in that encoding"),
    ]
    with pytest.raises(ManifestError, match=r"has no column c: its first line must name a, c, nam"):
        list(rows.read_rows(file, needs=("a", "c"), aside=aside, name="t.csv"))
    with pytest.raises(ManifestError, match=r"no\.csv cannot be read: No such file"):
        list(rows.read_rows(tmp_path / "no.csv", needs=("a",), aside=aside, name="no.csv"))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_json_list_is_read_in_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(rows, "CHUNK_CHARS", chunk)
    entries = [{"a": "x]}", "b": [1, {"c": "é"}]}, 12, "text", {}, None]
    file = tmp_path / "t.json"
    for text in (json.dumps(entries), json.dumps(entries, indent=1, ensure_ascii=False)):
        file.write_text(text, encoding="utf-8")
        assert list(rows.read_json_list(file)) == [*enumerate(entries, 1)]
    file.write_text("[]")
    assert list(rows.read_json_list(file)) == []
    file.write_text('[{"a": 1}, {"a": 2')
    with pytest.raises(ManifestError, match=r"breaks off, or is no JSON, at '\{\"a\": 2'"):
        list(rows.read_json_list(file))
    file.write_text('{"a": 1}')
    with pytest.raises(ManifestError, match="must be a JSON list"):
        list(rows.read_json_list(file))


def test_options_where_the_labels_are_few_and_words_where_they_are_fewer():
    few, many = [f"l{n}" for n in range(3)], [f"l{n}" for n in range(200)]
    assert (
        ask.classify("l1", labels=few).instruction
        == "Which of these sounds is heard: l0, l1 or l2?"
    )
    assert ask.classify("l1", labels=few).options == ("l0", "l1", "l2")
    some = ask.classify("l1", labels=many[:50])
    assert (some.instruction, len(some.options or ())) == ("Which sound is heard?", 50)
    assert ask.classify("l1", labels=many).options is None


def test_captions_are_questions_in_training_and_references_elsewhere():
    captions = ("a", "b", "a")
    assert [(d.answer, d.references) for d in ask.describe(captions, split="train")] == [
        ("a", ("b",)),
        ("b", ("a",)),
    ]
    assert [(d.answer, d.references) for d in ask.describe(captions, split="test")] == [
        ("a", ("b",))
    ]
    assert ask.describe(["a"], split="test")[0].references is None


def test_which_comes_first_is_asked_where_it_can_be_told():
    draft = ask.which_first([(3.0, "bell"), (1.0, "dog"), (2.0, "dog")], clip="c")
    assert draft is not None
    assert draft.answer == "dog"
    assert sorted(draft.options or ()) == ["bell", "dog"]
    assert {ask.which_first([(0.0, "a"), (9.0, "b")], clip=c).options for c in "abcdef"} == {
        ("a", "b"),
        ("b", "a"),
    }
    assert ask.which_first([(1.0, "a"), (1.3, "b"), (5.0, "c")], clip="c") is None
    assert ask.which_first([(1.0, "a"), (5.0, "a")], clip="c") is None
