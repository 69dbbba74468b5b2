"""Which topics the filters take."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError
from kafka_backup.selection import FilterKind, GroupFilter, GroupSelection, TopicFilter, TopicSelection

NAMES = st.text("abAB01._-", min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))


def test_topic_filter_regex_matches_correctly() -> None:
    """A filter between slashes is a regular expression, case-sensitive and anchored only by ^ and $.

    One filter must take all of an application's topics and none of another's.
    Ignoring case, or anchoring on our own, would take too many topics or too few.
    """
    chosen = TopicFilter.parse("/^app_.*/")
    assert chosen.kind is FilterKind.REGEX
    assert chosen.matches("app_orders")
    assert chosen.matches("app_payments")
    assert not chosen.matches("system_logs")
    assert not chosen.matches("APP_ORDERS")
    assert TopicFilter.parse("/orders/").matches("app_orders_v2")
    assert not TopicFilter.parse("/orders$/").matches("app_orders_v2")


def test_topic_filter_wildcard_matches_correctly() -> None:
    """A filter with * or ? covers the whole name: * is any characters, none included, ? exactly one.

    It is the filter that most people write.
    A match anywhere in the name would back up, or restore, what nobody asked for.
    """
    chosen = TopicFilter.parse("app_*")
    assert chosen.kind is FilterKind.WILDCARD
    assert chosen.matches("app_")
    assert chosen.matches("app_orders")
    assert chosen.matches("app_payments_v1")
    assert not chosen.matches("system_app_orders")
    assert not TopicFilter.parse("*_app").matches("x_app_orders")
    assert TopicFilter.parse("v?").matches("v1")
    assert not TopicFilter.parse("v?").matches("v")
    assert not TopicFilter.parse("v?").matches("v10")
    assert not TopicFilter.parse("a.*").matches("abc")


def test_topic_filter_list_matches_exactly() -> None:
    """A list of plain names takes exactly these topics.

    Named topics are a promise: these, and no others.
    A prefix match would take orders_v2 as well; a dot could stand for any character.
    """
    chosen = TopicSelection.parse(["orders", "payments", "a.b"])
    assert chosen.includes("orders")
    assert chosen.includes("payments")
    assert not chosen.includes("orders_v2")
    assert not chosen.includes("Orders")
    assert not chosen.includes("axb")


@given(NAMES, st.text("abAB01._-*?", min_size=1, max_size=8))
def test_wildcards_agree_with_a_plain_matcher(name: str, pattern: str) -> None:
    """Wildcards decide as a matcher that tries every split of the name.

    They are translated to a regular expression, where every character has a meaning of its own.
    A dot, a dash or an escape that is not taken literally would match other names.
    """

    def matches(rest: str, name: str) -> bool:
        if not rest:
            return not name
        if rest[0] == "*":
            return any(matches(rest[1:], name[i:]) for i in range(len(name) + 1))
        return bool(name) and rest[0] in ("?", name[0]) and matches(rest[1:], name[1:])

    assert TopicFilter.wildcard(pattern).matches(name) == matches(pattern, name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a b",
        "a/b",
        "/",
        "//",
        "/(/",
        "/[a-/",
        "ä",
        "a" * 250,
        "app_[ab]*",
        "app_*\n",
        "orders\n",
    ],
)
def test_a_malformed_filter_is_refused(text: str) -> None:
    """A filter that is empty, no possible topic name, or no valid regular expression is an error.

    A filter that matches nothing because of a slip leaves a topic without a backup, in silence.
    An empty expression matches every topic; a bracket in a wildcard looks like a set but is none.
    """
    with pytest.raises(ConfigurationError, match=re.escape(repr(text)[1:-1][:8]) if text else "filter"):
        TopicFilter.parse(text)


def test_exclusion_wins() -> None:
    """A topic that a filter includes and another excludes is not taken.

    "All but the audit log" is how people leave data out on purpose.
    If the inclusion won, a topic that must not leave the cluster would.
    """
    chosen = TopicSelection.parse(["*", "audit-log"], ["audit-*", "/^tmp/"])
    names = ["audit-log", "orders", "tmp1", "payments"]
    assert chosen.select(names, where="the cluster") == ["orders", "payments"]


def test_internal_topics_are_taken_only_by_name() -> None:
    """Wildcards and expressions pass over internal topics; their exact name takes them.

    "*" means a person's topics; the group history is captured when it is asked for.
    Every backup would otherwise drag __consumer_offsets along.
    """
    names, internal = ["__consumer_offsets", "orders"], ["__consumer_offsets"]
    for wide in ("*", "__*", "/.*/"):
        assert "__consumer_offsets" not in TopicSelection.parse([wide]).select(
            names, internal=internal, where="the cluster"
        )
    chosen = TopicSelection.parse(["__consumer_offsets"])
    assert chosen.select(names, internal=internal, where="the cluster") == ["__consumer_offsets"]


def test_a_named_topic_must_exist() -> None:
    """An exact filter without its topic is an error that names both; a wildcard may match nothing.

    Who names a topic believes that it is backed up.
    A slip in a name would go on for months as a backup of nothing.
    """
    with pytest.raises(ConfigurationError, match=r"'ordres'.*cluster abc"):
        TopicSelection.parse(["ordres"]).select(["orders"], where="cluster abc")
    assert TopicSelection.parse(["ordres*"]).select(["orders"], where="cluster abc") == []


def test_a_named_topic_must_not_be_excluded() -> None:
    """Filters in place of the configured ones, of which an exclusion takes one away that is a name.

    "All but these" is meant, "this one" against an exclusion elsewhere is a mistake of one of the two.
    The topic that somebody typed would be left out of the capture without a word.
    """
    with pytest.raises(ConfigurationError, match=r"'tmp-1' was named.*excludes it \(tmp-\*, /1\$/\)"):
        TopicSelection.instead(["orders", "tmp-1"], ["tmp-*", "x", "/1$/"])
    chosen = TopicSelection.instead(["orders", "tmp-?"], ["tmp-*"])
    assert chosen.select(["orders", "tmp-1"], where="the cluster") == ["orders"]


def test_filters_that_match_nothing_are_told() -> None:
    """Filters of which some match a topic, an excluded or internal topic, or none.

    A wildcard may match nothing, for topics come and go.
    One with a slip in it would go on for months as a backup of nothing.
    """
    chosen = TopicSelection.parse(["*", "tmp-*", "oders*", "/^__/", "__consumer_offsets"], ["tmp-*"])
    names, internal = ["orders", "tmp-1", "__consumer_offsets"], ["__consumer_offsets"]
    assert chosen.idle(names, internal=internal) == ["oders*", "/^__/"]


@given(st.lists(NAMES, max_size=20))
def test_selected_names_are_sorted_and_unique(names: list[str]) -> None:
    """The selection of all topics gives each name once, in order.

    Captures of the same cluster list topics the same way, so that two of them compare.
    A set's order differs from run to run.
    """
    assert TopicSelection.parse(["*"]).select(names, where="the cluster") == sorted(set(names))


@given(st.text(st.characters(codec="utf-8"), max_size=12), st.text(st.characters(codec="utf-8"), max_size=12))
def test_group_filters_take_names_of_any_characters(name: str, other: str) -> None:
    """An exact group filter takes that name and no other; brackets, dots and newlines mean nothing.

    Names of groups are any UTF-8, unlike those of topics.
    A filter made by fnmatch takes ``[a]`` for a character class and stops at a newline.
    """
    selection = GroupSelection.parse(["*"])
    assert selection.select([name, other]) == sorted([name, other])
    if name and not (len(name) > 1 and name[0] == name[-1] == "/") and not set("*?") & set(name):
        assert GroupFilter.parse(name).matches(name)
        assert GroupFilter.parse(name).matches(other) == (name == other)
        assert GroupFilter.parse(f"{name}*").matches(name + other)
        assert GroupFilter.parse(f"{name}?").matches(f"{name}\n")
        assert not GroupFilter.parse(f"{name}?").matches(name)


def test_group_selection_names_what_is_missing() -> None:
    """Only groups that a filter names exactly can be missing, and exclusions come last.

    A typing error in a group's name must not become a snapshot without it.
    A wildcard that matches nothing is no error: groups come and go.
    """
    selection = GroupSelection.parse(["a", "b*", "/^c/"], ["b2"])
    assert selection.missing(["b1"]) == ["a"]
    assert selection.missing(["a"]) == []
    assert selection.select(["c1", "b2", "b1", "a", "xc"]) == ["a", "b1", "c1"]
    with pytest.raises(ConfigurationError, match="empty"):
        GroupFilter.parse("")
    with pytest.raises(ConfigurationError, match=r"group filter .*regular"):
        GroupFilter.parse("/(/")
