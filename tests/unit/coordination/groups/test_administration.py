"""DescribeGroups and ListGroups: groups as administrators see them."""

from __future__ import annotations

from kafscale.coordination.groups.events import DescribeGroupsRequest, ListGroupsRequest
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, Driver, subscription


def listed(driver: Driver, **filters: tuple[str, ...]) -> dict[str, tuple[str, str, str]]:
    response = driver.ask("list_groups", ListGroupsRequest(**filters))
    return {one.group_id: (one.state, one.protocol_type, one.group_type) for one in response.groups}


def test_describing_a_stable_group() -> None:
    """Protocol, and for each member its own words and its assignment."""
    driver = Driver()
    left, right = driver.stable("left", "right")
    (group,) = driver.ask("describe_groups", DescribeGroupsRequest(group_ids=(GROUP,))).groups
    assert (group.error, group.state, group.protocol_type, group.protocol) == (
        ErrorCode.NONE,
        "Stable",
        "consumer",
        "range",
    )
    assert [(one.member_id, one.instance_id, one.assignment) for one in group.members] == [
        (left.member_id, "left", b"part 0"),
        (right.member_id, "right", b"part 1"),
    ]
    assert {(one.client_id, one.client_host, one.metadata) for one in group.members} == {
        ("client", "/127.0.0.1", subscription("t"))
    }


def test_describing_a_group_between_generations() -> None:
    """Members are named, what they said and got is not."""
    driver = Driver()
    driver.join()
    (group,) = driver.ask("describe_groups", DescribeGroupsRequest(group_ids=(GROUP,))).groups
    assert (group.state, group.protocol) == ("CompletingRebalance", "")
    assert [(one.metadata, one.assignment) for one in group.members] == [(b"", b"")]


def test_describing_no_group() -> None:
    """Version 6 has an error for it; older ones see a dead group."""
    driver = Driver()
    (group,) = driver.ask("describe_groups", DescribeGroupsRequest(group_ids=("other",))).groups
    assert (group.error, group.state, group.members) == (ErrorCode.GROUP_ID_NOT_FOUND, "Dead", ())
    assert group.error_message == "Group other not found."


def test_listing_groups() -> None:
    """All of them, or those of given states and types, whatever the case of the names."""
    driver = Driver()
    driver.stable()
    driver.join(group_id="workers", protocol_type="connect")
    driver.commit(1, group_id="simple")
    everything = {
        GROUP: ("Stable", "consumer", "classic"),
        "workers": ("CompletingRebalance", "connect", "classic"),
        "simple": ("Empty", "", "classic"),
    }
    assert listed(driver) == everything
    assert set(listed(driver, states=("stable", "EMPTY"))) == {GROUP, "simple"}
    assert listed(driver, states=("nonsense",)) == {}
    assert listed(driver, types=("Classic",)) == everything
    assert listed(driver, types=("consumer",)) == {}
