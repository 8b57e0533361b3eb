"""kcat (librdkafka 2.0, an old client's request versions): produce, consume, groups, metadata, from the shell."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

KCAT = shutil.which("kcat") or shutil.which("kafkacat")
pytestmark = [pytest.mark.kcat, pytest.mark.skipif(KCAT is None, reason="kcat is not installed")]


def kcat(bootstrap: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run kcat to its end and return what it printed."""
    done = subprocess.run(
        [str(KCAT), "-b", bootstrap, *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_produce_and_consume(bootstrap: str, topic: str, codec: str) -> None:
    """Lines piped in come out again, keys and headers with them, in each codec."""
    lines = b"".join(b"key%d:value %d %s\n" % (i, i, b"x" * 100) for i in range(200))
    kcat(bootstrap, "-P", "-t", topic, "-p", "0", "-K", ":", "-z", codec, "-H", "from=kcat", stdin=lines)
    got = kcat(bootstrap, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k:%s\n")
    assert got == lines
    headers = kcat(bootstrap, "-C", "-t", topic, "-o", "beginning", "-c", "1", "-e", "-q", "-f", "%h")
    assert headers == b"from=kcat"


def test_group(bootstrap: str, topic: str, group: str) -> None:
    """A group consumer reads everything once; the next run of the group has nothing left."""
    kcat(bootstrap, "-P", "-t", topic, stdin=b"a\nb\nc\n")
    settings = ("-X", "auto.offset.reset=earliest", "-e", "-q", "-G", group, topic)
    assert sorted(kcat(bootstrap, *settings).split()) == [b"a", b"b", b"c"]
    assert kcat(bootstrap, *settings) == b""


def test_metadata_and_offsets(bootstrap: str, topic: str) -> None:
    """The list shows brokers and the topic; offsets can be asked for by time."""
    kcat(bootstrap, "-P", "-t", topic, "-p", "0", stdin=b"a\nb\n")
    listed = json.loads(kcat(bootstrap, "-L", "-J", "-t", topic))
    assert listed["brokers"]
    assert [found["topic"] for found in listed["topics"]] == [topic]
    assert b"offset 2" in kcat(bootstrap, "-Q", "-t", f"{topic}:0:-1")
    assert b"offset 0" in kcat(bootstrap, "-Q", "-t", f"{topic}:0:-2")
