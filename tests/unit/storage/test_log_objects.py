"""Goal: log objects, packs and manifests give back what was written, and no flipped byte of what they claim passes."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import Corrupt
from kafscale.storage.extents import Extent
from kafscale.storage.keys import Keys, index_of, sequence_of, writer_of
from kafscale.storage.log_objects import (
    BATCH_ROW,
    BATCHES_GROUP,
    FOOTER_BYTES,
    HEADER_BYTES,
    LOG_START_GROUP,
    BatchGroup,
    Checkpoint,
    GroupKind,
    Kind,
    LogStart,
    ManifestPlace,
    Seal,
    decode_checkpoint,
    decode_data_table,
    decode_header,
    decode_seal,
    encode_footer,
    encode_header,
    encode_small,
    join,
    split_object,
)
from kafscale.storage.manifest import GroupSnapshot, decode_manifest, encode_manifest, restore_partition
from kafscale.storage.packs import PACK_ROW, encode_pack_header, read_pack
from kafscale.storage.partition import EpochStart, PartitionLog
from tests.unit.storage.rig import Config, batch_of, log_id, make_partition, topic_id

I64 = st.integers(-(1 << 63), (1 << 63) - 1)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
I16 = st.integers(-(1 << 15), (1 << 15) - 1)
U64 = st.integers(0, (1 << 64) - 1)
TOPIC = st.binary(min_size=16, max_size=16)
ROWS = st.lists(st.tuples(I64, I32, I32, I64, I64, I16, I32, I16), max_size=5)
GROUPS = st.lists(
    st.one_of(
        st.builds(BatchGroup, topic_id=TOPIC, partition=I32, leader_epoch=I32, position=U64, rows=ROWS),
        st.builds(LogStart, topic_id=TOPIC, partition=I32, leader_epoch=I32, offset=I64),
    ),
    max_size=6,
)


def encode_groups(groups: list[BatchGroup | LogStart]) -> bytes:
    table = bytearray()
    for group in groups:
        match group:
            case BatchGroup():
                table += BATCHES_GROUP.pack(
                    GroupKind.BATCHES,
                    group.topic_id,
                    group.partition,
                    group.leader_epoch,
                    group.position,
                    len(group.rows),
                )
                for row in group.rows:
                    table += BATCH_ROW.pack(*row)
            case LogStart():
                table += LOG_START_GROUP.pack(
                    GroupKind.LOG_START_OFFSET, group.topic_id, group.partition, group.leader_epoch, group.offset
                )
    return bytes(table)


def data_object(groups: list[BatchGroup | LogStart], body: bytes, is_copied: bool = True) -> bytes:
    """`is_copied`: with a copy of the header before the footer, which older objects have not."""
    table = encode_groups(groups)
    header = encode_header(Kind.DATA, log_id(7), 9, 123, -1)
    return join([header, body, table, encode_footer(HEADER_BYTES + len(body), table, header if is_copied else b"")])


@given(groups=GROUPS, body=st.binary(max_size=50))
def test_data_objects_round_trip(groups, body):
    """Goal: header and groups come back as they were, whatever they hold."""
    header, table = split_object(data_object(groups, body), "key")
    assert (header.kind, header.log_id, header.sequence) == (Kind.DATA, log_id(7), 9)
    assert (header.created_ms, header.checkpoint_sequence) == (123, -1)
    assert decode_data_table(table, "key") == groups


@pytest.mark.parametrize("is_copied", [True, False])
def test_every_flipped_bit_and_every_truncation_is_found(is_copied):
    """Goal: damage to header, table or footer is Corrupt; the body is its batches' affair."""
    groups: list[BatchGroup | LogStart] = [
        BatchGroup(topic_id(1), 2, 3, 64, [(0, 0, 5, 6, 7, 8, 9, 10)]),
        LogStart(topic_id(1), 2, 3, 9),
    ]
    body = b"body"
    whole = data_object(groups, body, is_copied)
    for position in range(len(whole)):
        if HEADER_BYTES <= position < HEADER_BYTES + len(body):
            continue
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                decode_data_table(split_object(bytes(damaged), "key")[1], "key")
    for length in range(len(whole)):
        with pytest.raises(Corrupt):
            split_object(whole[:length], "key")


@given(groups=GROUPS, cut=st.integers(0, 400))
def test_a_table_cut_short_never_reads_as_another(groups, cut):
    """Goal: even with a matching checksum a table that ends inside a group is Corrupt, not shorter data."""
    table = encode_groups(groups)
    shorter = table[: max(0, len(table) - cut)]
    try:
        found = decode_data_table(shorter, "key")
    except Corrupt:
        return
    assert found == groups[: len(found)] and encode_groups(found) == shorter


def test_unknown_versions_and_kinds_are_refused_by_name():
    """Goal: what a later release wrote is an error that says so."""
    header = bytearray(encode_header(Kind.DATA, log_id(1), 0, 0, -1))
    struct.pack_into(">H", header, 4, 2)
    from crc32c import crc32c

    header[-4:] = crc32c(bytes(header[:-4])).to_bytes(4, "big")
    with pytest.raises(Corrupt, match="format version 2"):
        decode_header(header, "key")
    with pytest.raises(Corrupt, match="unknown kind 9"):
        decode_data_table(b"\x09", "key")


@given(
    covered=U64,
    places=st.dictionaries(
        st.integers(0, 1000), st.builds(ManifestPlace, epoch=I32, key=st.text(), position=U64, length=U64)
    ),
    given_up=st.lists(st.text()),
    released=st.dictionaries(st.integers(0, 1000), I32),
)
def test_checkpoints_round_trip(covered, places, given_up, released):
    """Goal: a checkpoint comes back as it was."""
    checkpoint = Checkpoint(covered=covered, slots=places, given_up=given_up, released=released)
    header, table = split_object(
        join(encode_small(encode_header(Kind.CHECKPOINT, log_id(1), 5, 6, 3), checkpoint)), "key"
    )
    assert header.kind == Kind.CHECKPOINT and header.checkpoint_sequence == 3
    assert decode_checkpoint(table, "key") == checkpoint


def test_seals_round_trip_and_nothing_else_is_one():
    """Goal: a seal comes back as it was; other bytes are Corrupt."""
    seal = Seal("broker-1", "worker 3 died")
    header, table = split_object(join(encode_small(encode_header(Kind.SEAL, log_id(1), 5, 6, -1), seal)), "key")
    assert header.kind == Kind.SEAL and decode_seal(table, "key") == seal
    for decode in (decode_seal, decode_checkpoint):
        with pytest.raises(Corrupt):
            decode(b"\xc1", "key")


@given(rows=st.lists(st.tuples(TOPIC, I32, I64, I64, I64, U64, st.integers(0, (1 << 32) - 1)), max_size=4))
def test_packs_round_trip(rows):
    """Goal: a pack's table comes back as it was, and no flipped byte of header, table or footer passes."""
    table = b"".join(PACK_ROW.pack(*row) for row in rows)
    whole = join([encode_pack_header(log_id(3), 8, 77), b"body", table, encode_footer(HEADER_BYTES + 4, table)])
    header, found = read_pack(whole, "key")
    assert (header.log_id, header.number, header.created_ms) == (log_id(3), 8, 77)
    assert [
        (r.topic_id, r.partition, r.base_offset, r.last_offset, r.max_timestamp, r.position, r.length) for r in found
    ] == rows
    assert PACK_ROW.size == 56
    for position in [*range(HEADER_BYTES), *range(HEADER_BYTES + 4, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 + position % 255
        with pytest.raises(Corrupt):
            read_pack(damaged, "key")
    for length in range(0, len(whole), 7):
        with pytest.raises(Corrupt):
            read_pack(whole[:length], "key")


def filled(chance: random.Random, number: int) -> PartitionLog:
    partition = make_partition(number, epoch=2)
    partition.log_start_offset = start = chance.choice([0, 17])
    partition.epochs = [EpochStart(1, start), EpochStart(2, start + 3)]
    for _ in range(chance.randrange(6)):
        length = chance.randrange(1, 5)
        key = f"object{chance.randrange(3)}"
        partition.extents.append(
            Extent(start, start + length - 1, chance.randrange(99), key, chance.randrange(999), length)
        )
        partition.size_bytes += length
        start += length
    partition.high_watermark = partition.next_offset = start
    for producer in range(chance.randrange(4)):
        partition.producers.add(producer, 1, 0, 2, 0, 5, 6, start)
    return partition


@given(seed=st.integers(0, 9999))
def test_manifests_round_trip(seed):
    """Goal: a slot's partitions come back from its manifest as they were, and so does the group state."""
    chance = random.Random(seed)
    partitions = [filled(chance, number) for number in range(4)]
    groups = [GroupSnapshot(topic_id(1), 0, b"state")]
    data = encode_manifest(5, 2, partitions, groups)
    manifest = decode_manifest(data, "here")
    assert (manifest.slot, manifest.epoch, manifest.groups) == (5, 2, groups)
    for partition, described in zip(partitions, manifest.partitions, strict=True):
        loaded = PartitionLog(partition.topic, partition.topic_id, partition.index, 0, 2, Config())
        restore_partition(loaded, described, manifest.objects)
        assert loaded.extents == partition.extents and loaded.size_bytes == partition.size_bytes
        assert (loaded.log_start_offset, loaded.high_watermark, loaded.next_offset) == (
            partition.log_start_offset,
            partition.high_watermark,
            partition.high_watermark,
        )
        assert loaded.epochs == [entry for entry in partition.epochs if entry.start_offset <= partition.high_watermark]
        assert loaded.producers.snapshot(1 << 40) == partition.producers.snapshot(partition.high_watermark)
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 + seed % 255
        if position not in (6, 7):  # reserved
            with pytest.raises(Corrupt):
                decode_manifest(damaged, "here")


def test_keys_say_who_wrote_them():
    """Goal: the writer of every kind of object is read back from its key; others have none."""
    keys = Keys("a/b")
    segment = keys.segment("log", topic_id(1), 3, 7, log_id(2), 4)
    for key in (
        keys.log(log_id(2), 1),
        keys.manifest(log_id(2), 1),
        keys.pack(log_id(2), 1),
        segment,
        index_of(segment),
    ):
        assert writer_of(key) == log_id(2)
    assert segment.endswith("-4.kfs") and index_of(segment) == segment[:-4] + ".index"
    for key in (keys.cluster(1), keys.producer_ids(1), "a/b/topics/log/x", "x"):
        assert writer_of(key) is None
    assert sequence_of(keys.log(log_id(2), 12)) == 12
    assert FOOTER_BYTES == 24 and len(batch_of(10)) > 61
