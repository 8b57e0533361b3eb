"""Goal: a port that another has is noticed before anything is shared, and private ports are where the issue says."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

import pytest

from kafscale.config import Endpoint
from kafscale.config.listeners import ListenerSettings
from kafscale.control import NodeAddress
from kafscale.errors import StartError
from supervisor.sockets import PRIVATE_PORT_OFFSET, BoundListener, Listeners, bind_http


def test_all_workers_share_one_port_and_have_one_each() -> None:
    with closing(BoundListener(Endpoint("127.0.0.1", 0), None, 3)) as listeners:
        assert {bound.getsockname()[1] for bound in listeners.bootstrap} == {listeners.endpoint.port}
        assert len(set(listeners.private_ports)) == 3
        assert len(listeners.descriptors()) == 6


def test_only_sockets_that_a_worker_made_listen_get_connections() -> None:
    with closing(BoundListener(Endpoint("127.0.0.1", 0), None, 2)) as listeners:
        address = listeners.bootstrap[0].getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        listeners.bootstrap[1].listen()
        for _ in range(10):
            socket.create_connection(address).close()
        with pytest.raises(OSError, match=r"Invalid|22"):
            listeners.bootstrap[0].accept()


def test_a_listening_port_is_taken_even_if_it_could_be_shared() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=rf"127.0.0.1:{port} is in use.*--listen"):
            BoundListener(Endpoint("127.0.0.1", port), None, 1)
        with pytest.raises(StartError, match="--metrics"):
            bind_http(Endpoint("127.0.0.1", port))


def test_a_port_of_a_broker_that_does_not_listen_yet_is_taken() -> None:
    with (
        closing(BoundListener(Endpoint("127.0.0.1", 0), None, 1)) as unnamed,
        socket.socket() as probe,
    ):
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        with closing(BoundListener(Endpoint("127.0.0.1", port), None, 1)), pytest.raises(StartError, match="in use"):
            BoundListener(Endpoint("127.0.0.1", port), None, 1)
        assert unnamed.endpoint.port != port
    # And it is free again afterwards.
    BoundListener(Endpoint("127.0.0.1", port), None, 1).close()


def free_port_with_room_above() -> int:
    """A free port whose two private ports are free as well."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for number in (port + PRIVATE_PORT_OFFSET, port + PRIVATE_PORT_OFFSET + 1):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except (OSError, OverflowError):
                continue
            return port


def test_private_ports_are_ten_thousand_above() -> None:
    port = free_port_with_room_above()
    with closing(BoundListener(Endpoint("127.0.0.1", port), None, 2)) as listeners:
        assert listeners.private_ports == [port + PRIVATE_PORT_OFFSET, port + PRIVATE_PORT_OFFSET + 1]


def test_private_ports_are_free_ones_where_the_usual_are_taken() -> None:
    port = free_port_with_room_above()
    with socket.create_server(("127.0.0.1", port + PRIVATE_PORT_OFFSET + 1)):
        with closing(BoundListener(Endpoint("127.0.0.1", port), None, 2)) as listeners:
            assert port + PRIVATE_PORT_OFFSET + 1 not in listeners.private_ports
            assert len(set(listeners.private_ports)) == 2
        # None of those tried before was left open.
        with socket.create_server(("127.0.0.1", port + PRIVATE_PORT_OFFSET)):
            pass


def test_private_ports_that_were_asked_for_must_be_free() -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        with pytest.raises(StartError, match="--worker-ports"):
            BoundListener(Endpoint("127.0.0.1", 0), taken, 1)


def test_an_address_of_another_machine_is_refused_in_one_line() -> None:
    with pytest.raises(StartError, match=r"--listen 192.0.2.1:0: "):
        BoundListener(Endpoint("192.0.2.1", 0), None, 1)
    with pytest.raises(StartError, match="--listen"):
        BoundListener(Endpoint("no-such-host.invalid", 1), None, 1)


def test_a_closed_broker_leaves_the_port() -> None:
    listeners = BoundListener(Endpoint("127.0.0.1", 0), None, 2)
    endpoint, private = listeners.endpoint, listeners.private_ports[0]
    listeners.close()
    BoundListener(endpoint, None, 1).close()
    socket.create_server(("127.0.0.1", private)).close()


def test_every_listener_has_its_own_ports() -> None:
    """Each has a shared and private ports, nodes are told of by the listener's name, one taken port gives all back."""
    first = ListenerSettings(name="a", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", 0))
    other = ListenerSettings(
        name="b", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", 0), advertise=Endpoint("broker", 0)
    )
    with closing(Listeners([first, other], 2)) as listeners:
        a, b = listeners.resolved()
        assert (a.advertised.host, b.advertised.host) == ("127.0.0.1", "broker")
        assert 0 not in (a.listen.port, a.advertised.port, b.listen.port) and b.advertised.port == b.listen.port
        ports = {name: bound.private_ports for name, bound in listeners.bound.items()}
        assert len({*ports["a"], *ports["b"], a.listen.port, b.listen.port}) == 6
        nodes = listeners.nodes([0, 1])
        for index, node in enumerate(nodes):
            assert (node.host, node.port) == ("127.0.0.1", ports["a"][index])
            told = {name: node.at(name) for name in ("a", "b", "c")}
            assert told["a"] == NodeAddress(index, "127.0.0.1", ports["a"][index])
            assert told["b"] == NodeAddress(index, "broker", ports["b"][index])
            assert told["c"] is None
        assert {one.name: one.private_fd for one in listeners.sockets(1)} == {
            name: bound.private[1].fileno() for name, bound in listeners.bound.items()
        }
        assert len(listeners.descriptors()) == 8
    taken = ListenerSettings(name="c", protocol="PLAINTEXT", listen=a.listen)
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        blocked = ListenerSettings(name="d", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", port))
        with pytest.raises(StartError, match="listener d"):
            Listeners([taken, blocked], 1)
    Listeners([taken], 1).close()


def test_a_closed_broker_is_told_of_as_before() -> None:
    """What others are told may be asked for once more while a broker ends."""
    shared = ListenerSettings(
        name="a",
        protocol="PLAINTEXT",
        listen=Endpoint("127.0.0.1", 0),
        advertise=Endpoint("front.example", 443),
        shared_address=True,
    )
    own = ListenerSettings(name="b", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", 0))
    with closing(Listeners([shared, own], 2, "10.0.0.7")) as listeners:
        before = listeners.nodes([0, 1])
    assert listeners.nodes([0, 1]) == before


def test_nodes_of_a_broker_with_one_listener() -> None:
    """They are told of as ever, whatever its name."""
    one = ListenerSettings(name="a", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", 0))
    with closing(Listeners([one], 1)) as listeners:
        (node,) = listeners.nodes([7])
        assert node == node.at("anything") == NodeAddress(7, "127.0.0.1", listeners.bound["a"].private_ports[0])


def test_behind_a_shared_address_workers_have_no_port_for_clients() -> None:
    """They meet at sockets of this machine, of which each broker has its own; ports for other brokers are there only
    where there may be any. A listener of another kind keeps its ports."""
    here = Endpoint("127.0.0.1", 0)
    front = Endpoint("front.example", 443)
    shared = ListenerSettings(name="one", protocol="PLAINTEXT", listen=here, advertise=front, shared_address=True)
    own = ListenerSettings(name="own", protocol="PLAINTEXT", listen=here)
    with (
        closing(Listeners([shared], 2)) as alone,
        closing(Listeners([shared, own], 2, "10.0.0.7")) as member,
    ):
        assert alone.bound["one"].private_ports == member.bound["one"].private_ports == []
        assert len(member.bound["own"].private_ports) == 2
        assert [(n.host, n.port, n.peer) for n in alone.nodes([0, 1])] == [("front.example", 443, "")] * 2
        nodes = member.nodes([300, 301])
        assert {node.addresses["one"] for node in nodes} == {("front.example", 443)}
        assert [node.addresses["own"][1] for node in nodes] == member.bound["own"].private_ports
        assert alone.sockets(0)[0].private_fd == -1 and member.sockets(0)[1].private_fd >= 0
        ours, theirs = alone.peer_sockets(1), member.peer_sockets(1)
        assert ours is not None and theirs is not None
        assert (ours.peer_fd, theirs.peer_fd >= 0) == (-1, True)
        assert ours.sibling_name != theirs.sibling_name
        assert {ours.sibling_fd} <= set(alone.descriptors())
        assert {theirs.sibling_fd, theirs.peer_fd} <= set(member.descriptors())
        with socket.socket(socket.AF_UNIX) as sibling:
            # It waits in the backlog until the worker is there.
            sibling.connect(f"{ours.sibling_name}1")
        host, port = nodes[1].peer.split(":")
        assert host == "10.0.0.7"
        socket.create_connection(("127.0.0.1", int(port))).close()


def test_without_a_shared_address_workers_do_not_meet() -> None:
    with closing(
        Listeners([ListenerSettings(name="a", protocol="PLAINTEXT", listen=Endpoint("127.0.0.1", 0))], 1)
    ) as found:
        assert found.peer_sockets(0) is None and found.nodes([0])[0].peer == ""
