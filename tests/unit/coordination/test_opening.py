"""Goal: the settings name the coordination, in the spellings that people have for etcd's addresses."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import trustme

from kafscale.clock import SystemClock
from kafscale.config.sources import resolve
from kafscale.coordination.etcd import EtcdCoordination
from kafscale.coordination.opening import open_coordination
from kafscale.coordination.store import CoordinationStore, EmbeddedCoordination
from kafscale.errors import StartError, UsageError


def opened(**environ: str) -> CoordinationStore:
    settings = resolve({}, {f"KAFSCALE_{name}": value for name, value in environ.items()}).settings

    async def scenario() -> CoordinationStore:
        coordination = open_coordination(settings, SystemClock(), random.Random(1))
        await coordination.close()
        return coordination

    return asyncio.run(scenario())


def test_without_etcd_a_broker_is_its_cluster() -> None:
    assert isinstance(opened(), EmbeddedCoordination)


@pytest.mark.parametrize(
    ("endpoints", "hosts", "is_secure"),
    [
        ("etcd:2379", [("etcd", 2379)], False),
        ("http://a.example:2379,http://10.0.0.2:2381/", [("a.example", 2379), ("10.0.0.2", 2381)], False),
        ("https://etcd-0.etcd:2379", [("etcd-0.etcd", 2379)], True),
        ("[2001:db8::1]:2379", [("[2001:db8::1]", 2379)], False),
    ],
)
def test_spellings_of_addresses(endpoints: str, hosts: list[tuple[str, int]], is_secure: bool) -> None:
    """Goal: plain addresses and URLs, one or several; https means TLS."""
    coordination = opened(S3_BUCKET="bucket", ETCD_ENDPOINTS=endpoints)
    assert isinstance(coordination, EtcdCoordination)
    assert list(coordination._servers.endpoints) == hosts
    assert coordination._servers.is_secure == is_secure


@pytest.mark.parametrize("endpoints", ["etcd", "etcd:port", "ftp://etcd:2379", "etcd:2379;other:2379", "etcd:2379,"])
def test_what_is_no_address_is_named(endpoints: str) -> None:
    with pytest.raises(UsageError, match="KAFSCALE_ETCD_ENDPOINTS"):
        opened(S3_BUCKET="bucket", ETCD_ENDPOINTS=endpoints)


def test_files_for_etcd_are_looked_at(tmp_path: Path) -> None:
    """Goal: a file that is missing, no PEM, or not the certificate's key stops the start with a line that names it;
    gRPC would say nothing, or end the process."""
    ca = trustme.CA()
    issued, other = ca.issue_cert("broker.test"), ca.issue_cert("other.test")
    files = {name: tmp_path / name for name in ("ca", "certificate", "key", "other", "rubbish", "missing")}
    ca.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    other.private_key_pem.write_to_path(files["other"])
    files["rubbish"].write_text("sesame")

    def with_files(**names: str) -> CoordinationStore:
        given = {f"ETCD_{setting}_FILE": str(files[name]) for setting, name in names.items()}
        return opened(S3_BUCKET="bucket", ETCD_ENDPOINTS="etcd:2379", **given)

    assert isinstance(with_files(CA="ca", CERT="certificate", KEY="key"), EtcdCoordination)
    for names, line in (
        ({"CA": "missing"}, r"^etcd_ca_file: cannot read '.*/missing': No such file or directory$"),
        ({"CA": "rubbish"}, r"^etcd_ca_file: .*/rubbish holds no certificate in PEM"),
        ({"CERT": "missing", "KEY": "key"}, r"^etcd_cert_file: cannot read '.*/missing'"),
        ({"CERT": "certificate", "KEY": "missing"}, r"^etcd_key_file: cannot read '.*/missing'"),
        ({"CERT": "rubbish", "KEY": "key"}, r"^etcd_cert_file: .*/rubbish can't be used with its key, .*/key"),
        ({"CERT": "certificate", "KEY": "rubbish"}, r"^etcd_cert_file: .*/certificate can't be used .*/rubbish"),
        ({"CERT": "certificate", "KEY": "other"}, r"^etcd_cert_file: .*/other \(KEY_VALUES_MISMATCH\)"),
    ):
        with pytest.raises(StartError, match=line) as refusal:
            with_files(**names)
        assert "\n" not in str(refusal.value) and "sesame" not in str(refusal.value)


def test_brokers_of_a_cluster_need_a_bucket() -> None:
    """Goal: a directory is shared with nobody."""
    with pytest.raises(StartError, match="set s3_bucket"):
        opened(ETCD_ENDPOINTS="etcd:2379")
