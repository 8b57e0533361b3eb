"""Goal: a broker of stub workers starts, replaces what dies, hangs or babbles, and ends leaving nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Endpoint, Settings
from kafscale.coordination.commands import CreateTopic, decode_results, encode_commands
from kafscale.errors import StartError, StoreFailed
from kafscale.storage.cluster_log import FIRST_VERSION
from kafscale.storage.keys import Keys
from kafscale.storage.store import Purpose
from supervisor import child, post, restarts
from supervisor.supervisor import Supervisor

STUB = str(Path(__file__).with_name("stub_worker.py"))
PATIENCE = 20.0


class Broker:
    """A supervisor in this process with stub workers; ended when the context ends."""

    def __init__(self, root: Path, mode: str = "well", **options: Any) -> None:
        changes = {
            name: options.pop(name) for name in list(options) if name not in ("kill_hung", "keep_spare", "reload")
        }
        self.settings = Settings(
            **{
                "data_dir": str(root),
                "listen": Endpoint("127.0.0.1", 0),
                "metrics_addr": Endpoint("127.0.0.1", 0),
                "workers": 2,
                "slots": 8,
                **changes,
            }
        )
        self.root = root
        self.mode = mode
        self.options = options
        self.lines: list[str] = []
        self.code: int | None = None

    async def __aenter__(self) -> Broker:
        self.supervisor = Supervisor(
            self.settings,
            SystemClock(),
            random.Random(1),
            announce=self.lines.append,
            worker_command=[sys.executable, STUB, "--mode", self.mode],
            **self.options,
        )
        self.running = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.supervisor.ask_to_stop()
        self.code = await self.running

    async def ready(self) -> Broker:
        await until(lambda: self.read_file() is not None, self.running)
        return self

    @property
    def control_plane(self) -> Any:
        return self.supervisor._control_plane

    @property
    def posts(self) -> list[Any]:
        """None before the broker has any."""
        return [] if self.control_plane is None else self.control_plane.posts

    def read_file(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.root / "broker.json").read_text())
        except FileNotFoundError:
            return None

    def pids(self) -> list[int]:
        found = self.read_file()
        return [] if found is None else [worker["pid"] for worker in found["workers"]]

    async def order(self, text: str) -> dict[str, Any]:
        """Ask whichever worker the kernel picks."""
        found = self.read_file()
        host, port = found["listen"].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(text.encode() + b"\n")
        line = await reader.readline()
        writer.close()
        return json.loads(line or "{}")

    async def ask(self, index: int, text: str) -> dict[str, Any]:
        """Ask the worker of that index: connect until the kernel picks it."""
        while True:
            if (await self.order("who"))["index"] == index:
                answer = await self.order(text)
                if text != "who" or answer["index"] == index:
                    return answer

    async def get(self, path: str) -> tuple[int, bytes]:
        endpoint = self.read_file()["metrics"]
        return await asyncio.to_thread(fetch, f"http://{endpoint}{path}")

    async def unready_reasons(self, endpoint: str) -> list[str]:
        _, body = await asyncio.to_thread(fetch, f"http://{endpoint}/readyz")
        return json.loads(body)["reasons"]


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def until(condition: Callable[[], Any], running: asyncio.Task[int]) -> Any:
    """Wait for the thing; fail if the broker ends first or it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if running.done():
            raise AssertionError(f"the broker ended: {running.exception() or running.result()}")
        assert time.monotonic() < deadline, "waited for too long"
        await asyncio.sleep(0.005)
    return value


def run(scenario: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def sealed(root: Path, log_id: str) -> bool:
    return (root / "objects" / "kafscale" / "log" / log_id).is_dir()


def test_a_broker_starts_says_so_and_ends_clean(tmp_path) -> None:
    """Every worker serves its half of the slots; pages, lines and file tell the same; nothing is left at the end."""

    async def scenario() -> None:
        broker = Broker(tmp_path / "new")
        async with broker:
            await broker.ready()
            found = broker.read_file()
            assert found["supervisor_pid"] == os.getpid() and len(found["cluster_id"]) == 22
            assert [worker["node_id"] for worker in found["workers"]] == [0, 1]
            whos = [await broker.ask(index, "who") for index in (0, 1)]
            assert [who["pid"] for who in whos] == broker.pids()
            assert [who["epochs"] for who in whos] == [
                {str(n): 1 for n in (0, 2, 4, 6)},
                {str(n): 1 for n in (1, 3, 5, 7)},
            ]
            text = "\n".join(broker.lines)
            assert found["listen"] in text and str(tmp_path / "new") in text and "kcat" in text
            assert (await broker.get("/healthz"))[0] == 200
            assert await broker.get("/readyz") == (200, b'{"ready":true,"reasons":[]}\n')
            status, page = await broker.get("/metrics")
            assert status == 200 and b'kafscale_worker_up{worker="1"} 1.0' in page and b"kafscale_ready 1.0" in page
            pids = broker.pids()
            await until(lambda: broker.supervisor._spawner._spare, broker.running)
            spare = broker.supervisor._spawner._spare.pid
        assert broker.code == 0
        assert broker.read_file() is None
        assert not any(is_running(pid) for pid in (*pids, spare))
        assert all(sealed(tmp_path / "new", who["log_id"]) for who in whos)
        host, port = found["listen"].split(":")
        with socket.create_server((host, int(port))):
            pass

    run(scenario())


def test_a_killed_worker_is_replaced_and_its_sibling_is_not_disturbed(tmp_path) -> None:
    async def scenario() -> None:
        broker = Broker(tmp_path)
        async with broker:
            await broker.ready()
            before = [await broker.ask(index, "who") for index in (0, 1)]
            for life in range(3):
                victim = broker.pids()[0]
                os.kill(victim, signal.SIGKILL)
                await until(lambda victim=victim: victim not in broker.pids(), broker.running)
                after = await broker.ask(0, "who")
                assert after["epochs"] == {str(n): life + 2 for n in (0, 2, 4, 6)}
            sibling = await broker.ask(1, "who")
            assert (sibling["pid"], sibling["log_id"]) == (before[1]["pid"], before[1]["log_id"])
            assert sibling["adopted"] == [] and after["log_id"] != before[0]["log_id"]
            assert sealed(tmp_path, before[0]["log_id"])
            _, page = await broker.get("/metrics")
            assert b'kafscale_worker_restarts_total{worker="0"} 3.0' in page
            # Empty logs leave no trace in the lists but the first.
            assert [len(entries) for entries in broker.control_plane.controller.state.slots] == [2, 1] * 4
        assert broker.code == 0

    run(scenario())


def test_a_damaged_log_keeps_no_worker_down(tmp_path) -> None:
    """Goal: a worker whose log can't be read is replaced, the broker is well and starts again; the lists go on naming
    that log, and it is given no end."""

    async def scenario() -> None:
        broker = Broker(tmp_path)
        async with broker:
            await broker.ready()
            first = broker.posts[0].log_id
            os.kill(broker.pids()[0], signal.SIGKILL)
            await until(lambda: broker.posts[0].log_id != first and broker.posts[0].serving, broker.running)
            damaged = broker.posts[0].log_id
            key = Keys(broker.settings.cluster_namespace).log(damaged, 0)
            await broker.control_plane._store.put_if_absent(key, [b"damaged" * 20], Purpose.FLUSH)
            os.kill(broker.pids()[0], signal.SIGKILL)
            await until(lambda: broker.posts[0].log_id != damaged and broker.posts[0].serving, broker.running)
            slots = broker.control_plane.controller.state.slots
            assert {entries[1].log_id for entries in slots[::2]} == {damaged}
            assert (await broker.get("/healthz"))[0] == (await broker.get("/readyz"))[0] == 200
        again = Broker(tmp_path)
        async with again:
            await again.ready()
            slots = again.control_plane.controller.state.slots
            assert {entries[1].log_id for entries in slots[::2]} == {damaged}
            assert len(list((tmp_path / "objects" / "kafscale" / "log" / damaged).iterdir())) == 1
        assert broker.code == again.code == 0

    run(scenario())


def test_a_stopped_worker_is_sealed_killed_and_replaced(tmp_path) -> None:
    async def scenario() -> None:
        async with Broker(tmp_path, worker_hang_timeout_ms=300) as broker:
            await broker.ready()
            before = await broker.ask(1, "who")
            os.kill(before["pid"], signal.SIGSTOP)
            await until(lambda: before["pid"] not in broker.pids(), broker.running)
            await until(lambda: not is_running(before["pid"]), broker.running)
            after = await broker.ask(1, "who")
            assert sealed(tmp_path, before["log_id"]) and after["epochs"] == {str(n): 2 for n in (1, 3, 5, 7)}
            assert b'kafscale_worker_hung_kills_total{worker="1"} 1.0' in (await broker.get("/metrics"))[1]

    run(scenario())


def test_a_hung_worker_that_may_live_lives_until_the_broker_ends(tmp_path) -> None:
    """The switch for tests of fencing: the old process stays while the new one serves."""

    async def scenario() -> None:
        broker = Broker(tmp_path, worker_hang_timeout_ms=300, kill_hung=False)
        async with broker:
            await broker.ready()
            old = broker.pids()[1]
            os.kill(old, signal.SIGSTOP)
            await until(lambda: old not in broker.pids(), broker.running)
            assert is_running(old)
        assert broker.code == 0 and not is_running(old)

    run(scenario())


def test_a_worker_that_never_answers_is_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(child, "FIRST_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(restarts, "FIRST_WAIT_SECONDS", 0.01)
    mode = tmp_path / "mode"
    mode.write_text("silent")

    async def scenario() -> None:
        async with Broker(tmp_path / "d", f"file:{mode}", worker_hang_timeout_ms=100, keep_spare=False) as broker:
            await until(lambda: broker.posts and broker.posts[0].hung_count, broker.running)
            mode.write_text("well")
            monkeypatch.setattr(child, "FIRST_ANSWER_SECONDS", 30.0)
            await until(lambda: all(p.serving and p.child.store_ok for p in broker.posts), broker.running)

    run(scenario())


@pytest.mark.parametrize(("mode", "word"), [("dies", "exit status 3"), ("nonsense", "control frame")])
def test_a_crash_loop_is_backed_off_reported_and_recovers(tmp_path, monkeypatch, mode, word) -> None:
    """Meanwhile the sibling accepts on the socket of the worker that is down, so that no connection waits in vain."""
    monkeypatch.setattr(restarts, "FIRST_WAIT_SECONDS", 0.01)
    file = tmp_path / "mode"
    file.write_text("well")

    async def scenario() -> None:
        async with Broker(tmp_path / "d", f"file:{file}", keep_spare=False) as broker:
            await broker.ready()
            endpoint = broker.read_file()["metrics"]
            file.write_text(mode)
            os.kill(broker.pids()[0], signal.SIGKILL)
            await until(lambda: broker.posts[0].restart_count >= 5, broker.running)
            for _ in range(20):
                assert (await broker.order("who"))["index"] == 1
            assert (await broker.order("who"))["adopted"] == [0]
            reasons = await broker.unready_reasons(endpoint)
            assert any("worker 0 is in a crash loop" in reason for reason in reasons)
            assert word in broker.posts[0].trouble or "loads" in broker.posts[0].trouble
            file.write_text("well")
            await until(lambda: broker.posts[0].serving, broker.running)
            assert (await broker.ask(1, "who"))["adopted"] == []

    run(scenario())


def test_a_fenced_worker_comes_back_as_a_new_incarnation(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(post, "FENCED_EXIT_SECONDS", 0.05)

    async def scenario() -> None:
        async with Broker(tmp_path, workers=1) as broker:
            await broker.ready()
            before = await broker.ask(0, "who")
            await broker.order("fenced")
            await until(lambda: before["pid"] not in broker.pids(), broker.running)
            assert (await broker.ask(0, "who"))["log_id"] != before["log_id"]
            # It doesn't end by itself, as a real one would: then it is ended.
            await until(lambda: not is_running(before["pid"]), broker.running)

    run(scenario())


def test_a_store_that_broke_under_a_worker_stops_the_broker(tmp_path) -> None:
    """No other process may go on with the page cache of an fsync that failed."""

    async def scenario() -> None:
        with pytest.raises(StoreFailed, match="fsync"):
            async with Broker(tmp_path) as broker:
                await broker.ready()
                await broker.order("broken")
                await broker.running

    run(scenario())


def test_a_store_that_was_emptied_makes_the_broker_unready(tmp_path, monkeypatch) -> None:
    """That it answers "there is no such object" is no good answer for one that can't be gone."""
    monkeypatch.setattr("supervisor.store_watch.PROBE_SECONDS", 0.01)
    monkeypatch.setattr("supervisor.store_watch.SILENT_SECONDS", 0.2)

    async def scenario() -> None:
        async with Broker(tmp_path) as broker:
            await broker.ready()
            endpoint = broker.read_file()["metrics"]
            key = Keys(broker.settings.cluster_namespace).cluster(FIRST_VERSION)
            await broker.supervisor._store.delete([key], Purpose.CLUSTER)
            while not await broker.unready_reasons(endpoint):
                pass

    run(scenario())


def test_commands_are_answered_after_their_version_is_known(tmp_path) -> None:
    """And every worker learns of it; so does a worker that is replaced afterwards."""

    async def scenario() -> None:
        async with Broker(tmp_path) as broker:
            await broker.ready()
            answer = await broker.order("command " + encode_commands([CreateTopic(name="t")]).hex())
            (result,) = decode_results(bytes.fromhex(answer["results"]))
            assert result.error_code == 0 and answer["version"] == answer["known"] == 2
            for index in (0, 1):
                while "t" not in (await broker.ask(index, "who"))["topics"]:
                    pass
            victim = broker.pids()[1]
            os.kill(victim, signal.SIGKILL)
            await until(lambda: victim not in broker.pids(), broker.running)
            assert "t" in (await broker.ask(1, "who"))["topics"]
            # Bytes that are no commands are no worker's.
            pids = broker.pids()
            assert await broker.order("command ffff") == {}
            await until(lambda: not set(pids) <= set(broker.pids()), broker.running)

    run(scenario())


def test_a_restart_keeps_the_cluster_and_spreads_over_more_workers(tmp_path) -> None:
    async def scenario() -> None:
        async with Broker(tmp_path, workers=1) as broker:
            first = (await broker.ready()).read_file()
        async with Broker(tmp_path, workers=4) as broker:
            second = (await broker.ready()).read_file()
            assert [len((await broker.ask(index, "who"))["epochs"]) for index in range(4)] == [2] * 4
        assert second["cluster_id"] == first["cluster_id"]

    run(scenario())


def test_a_worker_that_does_not_drain_is_killed_and_the_exit_says_so(tmp_path) -> None:
    async def scenario() -> None:
        broker = Broker(tmp_path, drain_timeout_ms=100)
        async with broker:
            await broker.ready()
            victim = broker.pids()[0]
            os.kill(victim, signal.SIGSTOP)
        assert broker.code == 1 and not is_running(victim)

    run(scenario())


def test_a_second_signal_hurries(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("supervisor.draining.HURRIED_DRAIN_SECONDS", 0.05)

    async def scenario() -> None:
        broker = Broker(tmp_path, drain_timeout_ms=3_600_000)
        async with broker:
            await broker.ready()
            os.kill(broker.pids()[0], signal.SIGSTOP)
            broker.supervisor.ask_to_stop()
        assert broker.code == 1

    run(scenario())


def test_a_signal_during_the_start_ends_it(tmp_path) -> None:
    async def scenario() -> None:
        broker = Broker(tmp_path)
        async with broker:
            broker.supervisor.ask_to_stop()
        assert broker.code == 0

    run(scenario())


async def start_error(root: Path, **options: Any) -> str:
    broker = Broker(root, **options)
    await broker.__aenter__()
    with pytest.raises(StartError) as caught:
        await asyncio.wait_for(broker.running, PATIENCE)
    return str(caught.value)


def test_a_port_in_use_stops_the_start_before_anything_is_changed(tmp_path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert f":{port} is in use" in await start_error(tmp_path / "a", listen=Endpoint("127.0.0.1", port))
            assert "--metrics" in await start_error(tmp_path / "b", metrics_addr=Endpoint("127.0.0.1", port))
        assert list(tmp_path.iterdir()) == []

    run(scenario())


def test_a_directory_of_a_running_broker_is_refused(tmp_path) -> None:
    async def scenario() -> None:
        async with Broker(tmp_path) as broker:
            await broker.ready()
            message = await start_error(tmp_path)
            assert str(os.getpid()) in message and "running broker" in message
            assert (await broker.get("/readyz"))[0] == 200

    run(scenario())


def test_a_directory_that_cannot_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    async def scenario() -> None:
        assert "file" in await start_error(tmp_path / "file" / "data")

    run(scenario())


def test_a_newer_format_is_refused_and_nothing_is_changed(tmp_path) -> None:
    async def scenario() -> None:
        async with Broker(tmp_path) as broker:
            await broker.ready()
        (tmp_path / "format.json").write_text('{"format": 99}')
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        assert "99" in await start_error(tmp_path)
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before

    run(scenario())


def test_reloading_calls_the_hook_and_survives_its_failure(tmp_path) -> None:
    calls: list[int] = []

    def reload() -> None:
        calls.append(1)
        raise RuntimeError("unreadable")

    async def scenario() -> None:
        async with Broker(tmp_path, reload=reload) as broker:
            await broker.ready()
            broker.supervisor.ask_to_reload()
            assert (await broker.get("/readyz"))[0] == 200

    run(scenario())
    assert calls == [1]
