"""Goal: the command line does what it says, and a user's mistake is one line and exit code 2, never a stack trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kafscale
from kafscale.__main__ import foreign_package
from kafscale.config import DECLARATIONS, Resolved
from kafscale.errors import Invalid, StartError
from supervisor import cli

ROOT = Path(__file__).parents[3]


class Served:
    """Stands where the supervisor would run, and remembers what it was given."""

    def __init__(self) -> None:
        self.resolved: list[Resolved] = []

    def __call__(self, resolved: Resolved) -> int:
        self.resolved.append(resolved)
        return 0


def serve(*arguments: str, **environ: str) -> Resolved:
    """Run `kafscale` with these and give back what would have been served."""
    served = Served()
    assert cli.run(arguments, environ, served) == 0
    (resolved,) = served.resolved
    return resolved


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, **environ: str) -> str:
    """Run `kafscale`, which must refuse with exit code 2, and give back its one line."""
    served = Served()
    assert cli.run(arguments, environ, served) == 2
    out, err = capsys.readouterr()
    assert not served.resolved and out == "" and err.count("\n") == 1 and err.startswith("kafscale: ")
    return err.removeprefix("kafscale: ").rstrip("\n")


def test_flags_stand_before_and_after_the_command() -> None:
    """Goal: all flags of the manual are taken in any place, with = and without."""
    resolved = serve(
        *("--listen", "127.0.0.1:7000", "serve", "--workers=3", "--data-dir", "d", "--metrics", "localhost:7001"),
        *("--broker-id", "4", "--advertise", "k", "--worker-ports", "7100", "--log-retention-bytes", "-1"),
    )
    got = resolved.settings
    assert (str(got.listen), got.workers, got.data_dir, str(got.metrics_addr)) == (
        "127.0.0.1:7000",
        3,
        "d",
        "localhost:7001",
    )
    assert (got.broker_id, str(got.advertise), got.worker_ports, got.log_retention_bytes) == (4, "k:7000", 7100, -1)
    assert str(resolved.sources["workers"]) == "--workers" and str(resolved.sources["slots"]) == "default"


SPECIAL_TEXTS = {
    "sasl_mechanisms": "PLAIN,SCRAM-SHA-512",
    "trusted_proxies": "10.0.0.0/8",
    "sasl_oauthbearer_jwks_url": "https://issuer.example.com/keys",
}


def test_every_setting_has_its_flag() -> None:
    """Goal: each declared flag reaches its setting; only secrets have none."""
    bucket = {"KAFSCALE_S3_BUCKET": "bucket", "KAFSCALE_S3_READ_BUCKET": "replica"}
    files = ("CERT_FILE", "KEY_FILE", "CLIENT_CA_FILE")
    tls = {f"KAFSCALE_BROKER_TLS_{name}": "file" for name in files}
    etcd = {f"KAFSCALE_ETCD_{name}": "text" for name in ("CERT_FILE", "KEY_FILE", "USERNAME", "PASSWORD")}
    etcd |= {"KAFSCALE_ETCD_ENDPOINTS": "etcd:2379"}
    for declaration in DECLARATIONS:
        if declaration.flag is None:
            assert declaration.setting.secret
            continue
        value = {
            "endpoint": "127.0.0.1:77",
            "bool": "false",
            "int": str(declaration.setting.high),
            "str": "text",
            "listeners": "PLAINTEXT://127.0.0.1:9099",
            "choice": "".join(declaration.choices[-1:]),
        }
        text = SPECIAL_TEXTS.get(declaration.name) or value[declaration.kind]
        if declaration.name in ("message_max_bytes", "socket_request_max_bytes", "group_min_session_timeout_ms"):
            text = "100000000" if "max" in declaration.name else "7000"
        if declaration.name in ("worker_ports", "peer_ports"):
            text = "50000"
        if declaration.name.endswith("_endpoint"):
            text = "https://s3.example.com"
        if declaration.name == "etcd_endpoints":
            text = "etcd-0:2379,etcd-1:2379"
        if declaration.name == "audit_requests":
            text = "produce,group"
        if declaration.name == "super_users":
            text = "User:alice"
        environment = {"KAFSCALE_ACL_ENABLED": "true"} if declaration.name == "super_users" else {}
        environment |= {"KAFSCALE_AUDIT_LOG": "file"} if declaration.name.startswith("audit_") else {}
        environment |= bucket if declaration.name.startswith("s3_") else {}
        environment |= etcd if declaration.name.startswith("etcd_") else {}
        environment |= tls if declaration.name.startswith(("broker_tls_", "principal_source")) else {}
        assert serve("serve", declaration.flag, text, **environment).sources[declaration.name].kind == "flag"


def test_precedence_over_all_sources(tmp_path: Path) -> None:
    """Goal: flag over variable over file over default, and --config over KAFSCALE_CONFIG."""
    path, other = tmp_path / "a.toml", tmp_path / "b.toml"
    path.write_text("workers = 4\nbroker_id = 4\nslots = 4\n")
    other.write_text("workers = 5\n")
    got = serve("serve", "--config", str(path), "--workers", "2", KAFSCALE_BROKER_ID="3", KAFSCALE_CONFIG=str(other))
    assert (got.settings.workers, got.settings.broker_id, got.settings.slots) == (2, 3, 4)
    assert got.settings.data_dir == "./data" and got.config_file == str(path)
    assert serve("serve", KAFSCALE_CONFIG=str(other)).settings.workers == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serve", "--listn", "1:2"], "unknown flag --listn; did you mean --listen?"),
        (["--workrs=2", "serve"], "unknown flag --workrs; did you mean --workers?"),
        (["serve", "--zzzzzzzz"], "unknown flag --zzzzzzzz"),
        (["serve", "-c", "x"], "unknown flag -c"),
        (["serve", "--work", "2"], "unknown flag --work; did you mean --workers?"),
        (["serv"], "unknown command serv; did you mean serve?"),
        (["serve", "here"], "unexpected word here after the command serve"),
        ([], f"no command given; say one of {', '.join(cli.COMMANDS)}, or --help"),
        (["serve", "--listen"], "--listen: expected one argument"),
        (["serve", "--json"], "--json belongs to the command config and verify and audit verify and acl check"),
        (["recover", "--strict"], "--strict belongs to the command verify and audit verify"),
        (["serve", "--workers", "many"], "--workers: 'many' is not a whole number"),
        (["serve", "--listen", "0.0.0.0:9092"], None),
        (["serve", "--config", "/nowhere.toml"], "--config: cannot read '/nowhere.toml': No such file or directory"),
        (["config", "--workers", "0"], "--workers: 0 is below the least, 1"),
        (["serve", "a\nb"], "'unexpected word"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str | None) -> None:
    """Goal: each mistake is named, with the nearest valid name, and ends with exit code 2."""
    got = complaint(capsys, *arguments)
    assert line is None or got == line or (line.startswith("'") and got.startswith(line[1:]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.lists(
        st.sampled_from(["serve", "config", "--listen", "--json", "--version", "-", "--", "--="]) | st.text(max_size=8),
        max_size=6,
    ),
    st.dictionaries(
        st.from_regex(r"\AKAFSCALE_[A-Z_]{0,12}\Z"),
        st.text(st.characters(exclude_characters="\0"), max_size=8),
        max_size=3,
    ),
)
def test_no_words_make_a_stack_trace(
    capsys: pytest.CaptureFixture[str], words: list[str], environ: dict[str, str]
) -> None:
    """Goal: any words and variables give exit code 0 or 2; a refusal is one printable line after the warnings."""
    code = cli.run(words, environ, Served())
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == "" and all(line.startswith("kafscale: ") and line.isprintable() for line in lines)
    assert code in (0, 2)
    assert sum(not line.startswith("kafscale: warning: ") for line in lines) == (code == 2)


def test_unknown_variables_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: the warning is on stderr and the command goes on; a security-looking one stops with exit code 2."""
    assert serve("serve", KAFSCALE_WORKER="2").settings.workers >= 1
    err = capsys.readouterr().err
    assert err == "kafscale: warning: unknown variable KAFSCALE_WORKER is ignored; did you mean KAFSCALE_WORKERS?\n"
    assert complaint(capsys, "serve", KAFSCALE_LISTN_TLS_KEY="x").startswith("unknown variable KAFSCALE_LISTN_TLS_KEY")


def test_config_prints_values_and_sources(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Goal: each setting is a line with its value and where it came from; --json says the same."""
    path = tmp_path / "k.toml"
    path.write_text("slots = 8\n")
    arguments = ["config", "--config", str(path), "--workers", "2"]
    assert cli.run(arguments, {"KAFSCALE_BROKER_ID": "5"}) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(rows) == [declaration.name for declaration in DECLARATIONS]
    assert rows["workers"] == ["2", "--workers"] and rows["broker_id"] == ["5", "KAFSCALE_BROKER_ID"]
    assert rows["slots"] == ["8", str(path)] and rows["listen"] == ["127.0.0.1:9092", "default"]
    assert cli.run([*arguments, "--json"], {"KAFSCALE_BROKER_ID": "5"}) == 0
    decoded = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert decoded["workers"]["value"] == 2 and decoded["workers"]["source"] == {"kind": "flag", "name": "--workers"}
    assert decoded["slots"]["source"] == {"kind": "file", "name": str(path)}
    assert decoded["auto_create_topics"]["value"] is True and decoded["worker_ports"]["value"] is None


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: both spellings of version print it; help names every flag."""
    for arguments in (["--version"], ["version"]):
        assert cli.run(arguments, {}) == 0
        assert capsys.readouterr().out == f"kafscale {kafscale.__version__}\n"
    assert cli.run(["serve", "--help"], {}) == 0
    shown = capsys.readouterr().out
    assert all(f"  {declaration.flag} " in shown for declaration in DECLARATIONS if declaration.flag is not None)


@pytest.mark.parametrize(("error", "code"), [(StartError("port 9092 is taken"), 1), (Invalid(1, "x"), 1)])
def test_failures_are_one_line_too(capsys: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    """Goal: a start that fails is one line and exit code 1."""

    def fail(resolved: Resolved) -> int:
        raise error

    assert cli.run(["serve"], {}, fail) == code
    assert capsys.readouterr().err == f"kafscale: {error}\n"


def test_the_supervisors_exit_code_is_passed_on() -> None:
    """Goal: what the broker returns is the exit code."""
    assert cli.run(["serve"], {}, lambda resolved: 1) == 1


@pytest.mark.parametrize(("flags", "environment"), [(["-O"], {}), ([], {"PYTHONOPTIMIZE": "1"})])
def test_assertions_are_kept(flags: list[str], environment: dict[str, str]) -> None:
    """Goal: a Python that leaves assertions out is one clear line and exit code 1."""
    command = [sys.executable, *flags, "-m", "kafscale", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "PYTHONOPTIMIZE" in done.stderr and done.stderr.count("\n") == 1


def test_packages_of_others_are_noticed(tmp_path: Path) -> None:
    """Goal: ours pass; packages found elsewhere are refused by name."""
    assert foreign_package(ROOT) is None
    assert "'supervisor'" in (foreign_package(tmp_path) or "")


def test_anothers_files_among_ours_are_noticed(tmp_path: Path) -> None:
    """Goal: PyPI's supervisor, installed into the same folder, is one clear line and exit code 1."""
    for name in ("kafscale/__init__.py", "kafscale/__main__.py", "supervisor/__init__.py", "workers/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "supervisor/supervisord.py").touch()
    done = subprocess.run([sys.executable, "-m", "kafscale", "version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("kafscale: the package 'supervisor'")


def test_a_package_in_the_current_folder_does_not_take_our_place(tmp_path: Path) -> None:
    """Goal: `python -m kafscale` beside someone's own `workers` folder is one clear line and exit code 1."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers/__init__.py").write_text("raise SystemExit('imported')")
    done = subprocess.run([sys.executable, "-m", "kafscale", "version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert str(tmp_path / "workers") in done.stderr and "environment of its own" in done.stderr


def test_the_module_runs_and_is_light(tmp_path: Path) -> None:
    """Goal: `python -m kafscale` works, and nothing heavy is imported before it is needed."""
    watch = """
import runpy, sys
sys.argv = ["kafscale", "config"]
try:
    runpy.run_module("kafscale", run_name="__main__")
except SystemExit as end:
    print("|", end.code, {"asyncio", "uvloop", "prometheus_client", "aiohttp"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", watch], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "| 0 set()", done


def test_a_closed_pipe_is_no_stack_trace(tmp_path: Path) -> None:
    """Goal: `kafscale config | head -1` ends quietly, though its reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kafscale", "config"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
