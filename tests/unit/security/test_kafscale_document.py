"""Goal: a KafScale document means here what it means to KafScale v1.5, and rubbish is refused, not misread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.security.acl_rules import RuleSet
from kafscale.security.acl_sources import DocumentSource, load_document
from kafscale.security.kafscale_document import Document, DocumentError, Rule, parse_document
from kafscale.security.questions import ask
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot

VECTORS = json.loads((Path(__file__).parent / "kafscale_acl_vectors.json").read_text())["cases"]


def snapshot_of(document: Document | None, broken: str = "") -> Snapshot:
    return Snapshot(compile_snapshot(RuleSet(document=document, document_source="a test", broken=broken), 1))


def allows(snapshot: Snapshot, principal: str, action: str = "fetch", resource: str = "topic", name: str = "t") -> bool:
    return ask(snapshot, principal, "10.0.0.1", action, resource, name).is_allowed


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_decisions_are_those_of_kafscale(case: dict[str, Any]) -> None:
    """Every vector is decided as KafScale's own authorizer does, a document that can't be read included."""
    loaded = load_document(DocumentSource(is_enabled=True, json=case["acl_json"]))
    if case["acl_json"]:
        assert bool(loaded.problem) is case["parse_error"], loaded
    snapshot = snapshot_of(loaded.document, loaded.problem)
    for query in case["queries"]:
        allowed = allows(snapshot, query["principal"], query["action"], query["resource"], query["name"])
        assert allowed is query["allow"], query


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ('{"name":"a","NAME":"b","action":"x"}', Rule("x", "", "b")),
        ('{"Action":"x","aCTION":"y"}', Rule("y", "", "")),
        ('{"re\u017fource":"topic"}', Rule("", "topic", "")),
        ('{"action":"x","action":null}', Rule("x", "", "")),
        ('{"action":"\\ud800x","name":"\\ud83d\\ude00"}', Rule("\ufffdx", "", "\U0001f600")),
        ('{"more":[1,{"action":"z"}],"action":"x"}', Rule("x", "", "")),
        ("null", Rule()),
    ],
)
def test_fields_are_read_as_go_reads_them(text: str, rules: Rule) -> None:
    """Names in any case, the last of several, null for nothing, halves of pairs for U+FFFD, the unknown ignored."""
    document = parse_document('{"principals":[{"name":"a","allow":[' + text + "]}]}")
    assert document.principals[0].allow == [rules]


def test_a_list_that_is_there_twice_is_laid_over_the_first() -> None:
    """encoding/json decodes a second array into the entries of the first, and drops those it has no more of."""
    document = parse_document(
        '{"principals":[{"name":"a","allow":[{"action":"fetch"}]},{"name":"b"}],"Principals":[{"deny":[{"name":"x"}]}]}'
    )
    (only,) = document.principals
    assert (only.name, only.allow, only.deny) == ("a", [Rule("fetch")], [Rule(name="x")])


def test_of_principals_with_one_name_the_last_counts() -> None:
    """A later entry replaces an earlier one with its denies, names are trimmed, and one without a name is nobody's."""
    document = parse_document(
        '{"principals":[{"name":"a","deny":[{}]},{"name":" "},{"name":"b"},{"name":"\u00a0a ","allow":[{}]}]}'
    )
    assert [(found.name, found.position, len(found.deny)) for found in document.principals] == [
        ("b", 2, 0),
        ("a", 3, 0),
    ]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"[]", "must be an object, not an array"),
        (b'{"principals":{}}', "principals must be an array, not an object"),
        (b'{"principals":[{"allow":[{"name":1}]}]}', r"principals\[0\].allow\[0\].name must be a string, not a number"),
        (b'{"principals":[{"allow":["x"]}]}', r"principals\[0\].allow\[0\] must be an object, not a string"),
        (b'{"enabled":"yes"}', "enabled must be true or false, not a string"),
        (b'{"default_policy":null,"x":NaN}', "NaN is not allowed"),
        (b"{} {}", "Extra data"),
        (b"// no\n{}", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":"\n"}', "no JSON"),
        (b"\xff{}", "no JSON"),
    ],
)
def test_what_is_no_document_is_refused(data: bytes, complaint: str) -> None:
    """A wrong type anywhere, and all that JSON does not allow, is said in a line that names the place."""
    with pytest.raises(DocumentError, match=complaint):
        parse_document(data)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    """Whatever the bytes: a document, or DocumentError."""
    try:
        parse_document(data)
    except DocumentError as error:
        assert str(error)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["principals", "name", "allow", "deny", "action", "resource", "default_policy", "enabled", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(_json)
def test_any_json_becomes_a_snapshot_or_is_refused(value: Any) -> None:
    """What is taken for a document can be compiled and asked."""
    try:
        document = parse_document(json.dumps(value))
    except DocumentError:
        return
    allows(snapshot_of(document), "a")


# Which document counts

GOOD = '{"default_policy":"allow"}'
BAD = '{"default_policy":1}'


@pytest.mark.parametrize(
    ("json_text", "file_text", "fails_open", "is_allowed"),
    [
        (GOOD, None, False, True),
        # Not looked at, even if the JSON is bad.
        (BAD, GOOD, False, False),
        (BAD, GOOD, True, True),
        ("  ", GOOD, False, True),
        (None, GOOD, False, True),
        (None, BAD, False, False),
        (None, BAD, True, True),
        (None, None, False, False),
        (None, None, True, True),
    ],
)
def test_the_loading_table_is_kafscales(
    tmp_path: Path, json_text: str | None, file_text: str | None, fails_open: bool, is_allowed: bool
) -> None:
    """JSON before file, deny for what is broken or missing, and open only where that was asked for."""
    file = tmp_path / "acl.json"
    if file_text is not None:
        file.write_text(file_text)
    path = None if file_text is None else str(file)
    loaded = load_document(DocumentSource(True, json_text, path, fails_open))
    assert loaded.failed_open is (fails_open and bool(loaded.problem))
    broken = "" if loaded.failed_open else loaded.problem
    assert allows(snapshot_of(loaded.document, broken), "a") is is_allowed


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The problem says which file, and nothing is allowed."""
    loaded = load_document(DocumentSource(True, None, str(tmp_path / "none.json")))
    assert (loaded.document, loaded.source, loaded.problem) == (
        None,
        str(tmp_path / "none.json"),
        "it can't be read: No such file or directory",
    )


def test_disabled_reads_nothing(tmp_path: Path) -> None:
    """Without acl_enabled nothing is read, so nothing can be wrong."""
    assert load_document(DocumentSource(False, BAD, str(tmp_path / "none.json"))).problem == ""


def test_without_a_document_other_rules_may_be_on() -> None:
    """Where Kafka's bindings decide, having no document is no mistake."""
    assert load_document(DocumentSource(True, is_optional=True)) == load_document(DocumentSource())
