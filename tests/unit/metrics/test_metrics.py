"""Goal: blocks count exactly, belong to one version, and survive their writers; the page shows what they hold."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode
from kio.schema.index import api_key_map
from prometheus_client.parser import text_string_to_metric_families

from kafscale import metrics
from kafscale.errors import StartError
from kafscale.metrics import LAYOUT, Metric, MetricsBlock
from supervisor.exposition import Prices, SupervisorMetrics, render


@pytest.fixture
def block() -> Iterator[MetricsBlock]:
    made = MetricsBlock.create()
    yield made
    made.close()


def page(*blocks: MetricsBlock) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = render(dict(enumerate(blocks)), SupervisorMetrics(7)).decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, "the same sample twice"
            samples[key] = sample.value
    return samples


def test_metrics_have_cells_of_their_own_and_proper_names() -> None:
    """Goal: no two metrics share a cell, and names follow Prometheus's conventions."""
    expected = 0
    for metric in LAYOUT:
        assert int(metric) == expected
        expected += metric.cell_count
        assert metric.name.startswith("kafscale_") and (metric.kind == "counter") == metric.name.endswith("_total")
        assert not metric.name.endswith(("_ms", "_us", "_mb", "_kb")) and metric.help.endswith(".")
        assert (metric.scale == 1.0) == ("_seconds" not in metric.name)
    assert expected == metrics.CELL_COUNT
    assert len({metric.name for metric in LAYOUT}) == len(LAYOUT)


@settings(max_examples=50)
@given(st.data())
def test_the_page_shows_what_was_counted(data: st.DataObject) -> None:
    """Goal: any counts on any cells of two workers are read back from the page, summed or per worker, and no others."""
    blocks = [MetricsBlock.in_memory(), MetricsBlock.in_memory()]
    counters = [metric for metric in LAYOUT if metric.kind != "histogram"]
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for worker, block in enumerate(blocks):
        for metric in data.draw(st.lists(st.sampled_from(counters), unique=True)):
            values = tuple(data.draw(st.sampled_from(known)) for known in metric.labels.values())
            amount = data.draw(st.integers(1, 2**50))
            block.cells[metric.at(*values)] += amount
            labels = dict(zip(metric.labels, values, strict=True))
            if metric.per_worker:
                labels["worker"] = str(worker)
            key = (metric.name, tuple(sorted(labels.items())))
            expected[key] = expected.get(key, 0) + amount * metric.scale
    names = {metric.name for metric in counters}
    shown = {key: value for key, value in page(*blocks).items() if key[0] in names and value}
    assert shown == pytest.approx(expected)
    for block in blocks:
        block.close()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**40) | st.sampled_from(metrics.LATENCY_BOUNDS_US), max_size=30))
def test_histograms_hold_their_values(values: list[int]) -> None:
    """Goal: buckets are cumulative over the values at most their bound, count and sum are exact."""
    block = MetricsBlock.in_memory()
    for value in values:
        metrics.FLUSH_LATENCY.observe(block.cells, value)
    shown = page(block)
    bounds = [*metrics.FLUSH_LATENCY.bounds, math.inf]
    buckets = {dict(labels)["le"]: v for (name, labels), v in shown.items() if name == "kafscale_flush_seconds_bucket"}
    assert sorted(map(float, buckets)) == pytest.approx([bound / 1e6 for bound in bounds])
    for le, count in buckets.items():
        limit = float(le) * 1e6
        assert count == sum(value <= limit * (1 + 1e-9) for value in values)
    assert shown["kafscale_flush_seconds_count", ()] == len(values)
    assert shown["kafscale_flush_seconds_sum", ()] == pytest.approx(sum(values) / 1e6)
    block.close()


def test_labels_are_bounded() -> None:
    """Goal: no API key or error code that a client or a bug can produce finds a cell of another metric."""
    requests = range(metrics.REQUESTS, metrics.REQUESTS + metrics.REQUESTS.cell_count)
    errors = range(metrics.REQUEST_ERRORS, metrics.REQUEST_ERRORS + metrics.REQUEST_ERRORS.cell_count)
    for number in range(-32768, 32768):
        assert metrics.request_cell(number) in requests
        assert metrics.error_cell(number) in errors
    assert metrics.request_cell(32767) == metrics.request_cell(-1) == metrics.REQUESTS.at("other")
    assert metrics.error_cell(-1) == metrics.REQUEST_ERRORS.at("-1")
    assert metrics.error_cell(-2) == metrics.error_cell(999) == metrics.REQUEST_ERRORS.at("other")
    with pytest.raises(ValueError):
        metrics.CONNECTIONS_CLOSED.at("boredom")


def test_api_names_and_error_codes_are_kafkas() -> None:
    """Goal: the names by API key agree with an independent codec's, and every error code it knows has its own cell."""
    known = {key: name for key, name in api_key_map.items() if key < len(metrics.API_NAMES)}
    assert len(known) > 70
    for key, name in known.items():
        assert metrics.API_NAMES[key].lower() == name.replace("_", "")
    assert max(ErrorCode) <= metrics.ERROR_CODE_MAX


def test_a_block_of_another_version_is_refused(block: MetricsBlock) -> None:
    """Goal: a worker does not count into a block laid out differently, or into any other file."""
    assert block.fd is not None
    block._whole[8] ^= 1
    with pytest.raises(StartError):
        MetricsBlock.attach(block.fd)
    stranger = os.memfd_create("other")
    with pytest.raises(StartError):
        MetricsBlock.attach(stranger)
    os.close(stranger)


def test_a_block_cannot_be_shrunk(block: MetricsBlock) -> None:
    """Goal: no process can make the supervisor's mapping fault."""
    assert block.fd is not None
    with pytest.raises(PermissionError):
        os.ftruncate(block.fd, 0)


def test_a_new_incarnation_keeps_counters_and_zeroes_gauges(block: MetricsBlock) -> None:
    """Goal: after a worker's death counters go on from where they were, and gauges begin anew."""
    assert block.fd is not None
    block.cells[metrics.BYTES_SENT] += 5
    block.cells[metrics.CONNECTIONS_OPEN] += 3
    metrics.PRODUCE_LATENCY.observe(block.cells, 200)
    again = MetricsBlock.attach(os.dup(block.fd))
    again.begin_incarnation()
    again.cells[metrics.BYTES_SENT] += 1
    shown = page(block)
    assert shown["kafscale_sent_bytes_total", (("worker", "0"),)] == 6
    assert shown["kafscale_connections", (("worker", "0"),)] == 0
    assert shown["kafscale_produce_seconds_count", ()] == 1
    again.close()


def _write_both_halves(fd: int, ready: Connection) -> None:
    """In another process: flip a cell between numbers whose halves always agree, until told to stop."""
    block = MetricsBlock.attach(os.dup(fd))
    cells, cell = block.cells, metrics.BYTES_SENT
    low, high = 0x1111111111111111, 0x6EEEEEEEEEEEEEEE
    ready.send("writing")
    while not ready.poll():
        for _ in range(2000):
            cells[cell] = low
            cells[cell] = high
    block.close()


def test_a_reader_never_sees_half_a_number(block: MetricsBlock) -> None:
    """Goal: beside a busy writer in another process, every read is one of the numbers it wrote."""
    assert block.fd is not None
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    writer = context.Process(target=_write_both_halves, args=(block.fd, theirs))
    writer.start()
    try:
        assert ours.recv() == "writing"
        seen = {block.cells[metrics.BYTES_SENT] for _ in range(200_000)}
        seen |= {block.snapshot()[metrics.BYTES_SENT] for _ in range(2000)}
    finally:
        ours.send("stop")
        writer.join()
    assert seen - {0} and seen <= {0, 0x1111111111111111, 0x6EEEEEEEEEEEEEEE}
    assert writer.exitcode == 0


def test_the_supervisors_own_figures_are_shown() -> None:
    """Goal: restarts, kills, liveness, readiness and version appear, also before any worker has a block."""
    figures = SupervisorMetrics(7, cluster_version=12, ready=True)
    figures.worker(1).restarts += 2
    figures.worker(1).hung_kills += 1
    figures.worker(0).up = True
    families = {f.name: f for f in text_string_to_metric_families(render({}, figures).decode())}
    assert [s.value for s in families["kafscale_worker_up"].samples] == [1, 0]
    assert [s.value for s in families["kafscale_worker_restarts"].samples] == [0, 2]
    assert [s.value for s in families["kafscale_worker_hung_kills"].samples] == [0, 1]
    assert families["kafscale_cluster_version"].samples[0].value == 12
    assert families["kafscale_ready"].samples[0].value == 1
    assert families["kafscale_build_info"].samples[0].labels["broker_id"] == "7"


def test_cells_are_found_by_label() -> None:
    """Goal: two labels address distinct cells, in the declared order."""
    metric: Metric = metrics.STORE_OPERATIONS
    cells = [metric.at(verb, purpose) for verb in metrics.STORE_VERBS for purpose in metrics.STORE_PURPOSES]
    assert cells == list(range(metric, metric + metric.cell_count))


def test_what_the_store_costs_is_shown(block: MetricsBlock) -> None:
    """Goal: requests of workers and supervisor at their prices, in all and for each GiB produced; deletes are free."""
    own = MetricsBlock.in_memory()
    figures = SupervisorMetrics(7, requests=own, prices=Prices(put=5000, get=400, mib=20_000))

    def shown() -> tuple[float, float]:
        families = {f.name: f for f in text_string_to_metric_families(render({0: block}, figures).decode())}
        total, per_gib = (families[f"kafscale_store_cost_dollars{name}"].samples[0].value for name in ("", "_per_gib"))
        return total, per_gib

    assert shown() == (0, 0)
    block.cells[metrics.STORE_OPERATIONS.at("put", "flush")] += 1000
    block.cells[metrics.STORE_BYTES.at("put", "flush")] += 2 << 30
    block.cells[metrics.STORE_OPERATIONS.at("get", "cold_read")] += 500
    block.cells[metrics.STORE_OPERATIONS.at("delete", "sweep")] += 9000
    own.cells[metrics.STORE_OPERATIONS.at("list", "sweep")] += 200
    block.cells[metrics.BYTES_PRODUCED] += 2 << 30
    expected = (1200 * 5000 + 500 * 400 + 2048 * 20_000) / 1e9
    assert shown() == pytest.approx((expected, expected / 2))
    operations = page(block)
    assert operations["kafscale_store_operations_total", (("operation", "put"), ("purpose", "flush"))] == 1000
