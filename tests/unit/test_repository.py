"""Goal: what people rely on when they read this repository is so: its map, its pages, its habits.

Each check names the file and what to do about it.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kafscale import metrics
from kafscale.config import Settings
from tests import docs_apis, docs_file_map
from tests.docs_file_map import PACKAGES, ROOT

FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 80
# Hand-written parsers of the hot path that are longer on purpose, as "file:function".
LONG_ON_PURPOSE: frozenset[str] = frozenset()
VAGUE_NAMES = re.compile(r"(^|_)(util|utils|helper|helpers|manager|managers|common|misc)(_|$)")

# Third-party packages that one module alone may import; None: no module yet.
HOMES = {
    "prometheus_client": "supervisor/exposition.py",
    "aiobotocore": "kafscale/storage/s3.py",
    "botocore": "kafscale/storage/s3.py",
    "etcd3": "kafscale/coordination/etcd_client.py",
    "cryptography": "kafscale/security/tls.py",
    "joserfc": "kafscale/security/tokens.py",
    "re2": "kafscale/security/principal_rules.py",
}

# Calls whose result at a module's top can't be changed by anyone, or is a table that is built once and only read.
MUTABLE_CALLS = re.compile(r"(?:^|\.)(?:list|dict|set|bytearray|deque|defaultdict|OrderedDict|Counter|count|Lock)$")
MUTABLE_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def tracked(*patterns: str) -> list[Path]:
    """The files under version control that match, and those about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", *patterns],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def production() -> Iterator[tuple[str, ast.Module]]:
    """Every module of production code: its path within the repository and its tree."""
    for path in docs_file_map.modules():
        yield str(path.relative_to(ROOT)), tree_of(path)


def test_the_file_map_is_current() -> None:
    """ARCHITECTURE.md names every module, says of each what its own head says, and names nothing else."""
    _, written, _ = docs_file_map.split(docs_file_map.PAGE.read_text())
    assert written.strip() == docs_file_map.file_map().strip(), "run: make docs"


def test_the_table_of_apis_is_current() -> None:
    """docs/apis.md says what is served; the head of each handler's file gives the versions that are."""
    assert (ROOT / "docs" / "apis.md").read_text() == docs_apis.page(), "run: make docs"


def test_every_file_opens_by_saying_what_it_is() -> None:
    """A module's first statement is a docstring, in tests and scripts as well."""
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked("*.py")
        if tree_of(path).body and ast.get_docstring(tree_of(path)) is None
    ]
    assert silent == []


def test_files_have_one_subject() -> None:
    """No file is so long that it must have two."""
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert {path: lines for path, lines in long.items() if lines > FILE_LINES_MAX} == {}


def test_functions_can_be_read_at_once() -> None:
    """No function of production code is longer than a page and a half, but for those listed with a reason."""
    long = {
        f"{path}:{node.name}"
        for path, tree in production()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == LONG_ON_PURPOSE


def test_names_say_what_is_inside() -> None:
    """No file or folder has a name under which anything could be put."""
    vague = [
        str(path.relative_to(ROOT))
        for path in tracked("*.py")
        if any(VAGUE_NAMES.search(part.removesuffix(".py")) for part in path.relative_to(ROOT).parts)
    ]
    assert vague == []


def mutable_globals(tree: ast.Module) -> Iterator[str]:
    """Names at a module's top that hold what could be changed. Constants (upper case, or Final) are taken to be left
    alone: a name in lower case says that it isn't one."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value, annotation=annotation):
                if "Final" in ast.unparse(annotation):
                    continue
                targets = [target]
            case _:
                continue
        is_mutable = isinstance(value, MUTABLE_LITERALS) or (
            isinstance(value, ast.Call) and MUTABLE_CALLS.search(ast.unparse(value.func)) is not None
        )
        for target in targets:
            name = ast.unparse(target)
            if is_mutable and not name.lstrip("_").isupper() and name != "__all__":
                yield name


def test_modules_hold_no_state() -> None:
    """No module of production code has a global that changes: state belongs to an owner class."""
    found = [f"{path}: {name}" for path, tree in production() for name in mutable_globals(tree)]
    found += [
        f"{path}: global {', '.join(node.names)}"
        for path, tree in production()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("seen = {}", ["seen"]),
        ("_seen: set[int] = set()", ["_seen"]),
        ("queue = collections.deque()", ["queue"]),
        ("TABLE = {1: 2}", []),
        ("_table: Final = {1: 2}", []),
        ("pattern = re.compile('x')", []),
        ("__all__ = ['a']", []),
        ("def f():\n    seen = {}", []),
    ],
)
def test_state_at_the_top_of_a_module_would_be_found(code: str, expected: list[str]) -> None:
    """The check above can fail."""
    assert list(mutable_globals(ast.parse(code))) == expected


def imported(tree: ast.Module) -> set[str]:
    """The top-level packages that a module imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_third_party_packages_stay_at_home() -> None:
    """What could leak everywhere is known to one module."""
    importers: dict[str, list[str]] = {name: [] for name in HOMES}
    for path, tree in production():
        for name in imported(tree) & HOMES.keys():
            importers[name].append(path)
    assert importers == {name: [home] for name, home in HOMES.items()}


def test_every_metric_is_counted() -> None:
    """A metric that nothing counts would stand at 0 for ever, as if nothing had happened."""
    declared = {name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)}
    used = {
        node.id
        for _, tree in production()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert declared
    assert declared - used == set()


def test_every_setting_is_read() -> None:
    """A setting that nothing reads would be accepted and do nothing."""
    declared = {field.name for field in msgspec.structs.fields(Settings)}
    # As `settings.name`, or by its name from a table.
    read = {
        node.attr if isinstance(node, ast.Attribute) else node.value
        for _, tree in production()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Constant)
    }
    assert declared
    assert declared - read == set()


def test_production_code_imports_no_test_code() -> None:
    """Neither the tests nor the load generator are part of the product; and the load generator is a client, which
    imports nothing of the product."""
    found = [path for path, tree in production() if imported(tree) & {"tests", "loadtest"}]
    found += [
        str(path.relative_to(ROOT))
        for path in tracked("loadtest/*.py")
        if imported(tree_of(path)) & {*PACKAGES, "tests"}
    ]
    assert found == []


def test_pages_link_to_what_exists() -> None:
    """Every relative link in the documents leads to a file."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in tracked("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert broken == []


# What a command writes, and a stranger's file that a comment speaks of.
NOT_THERE = ("docs/bench.md", "supervisor/supervisord.py")


def test_pages_name_modules_that_exist() -> None:
    """A path of ours in a document or comment leads to a file: `kafscale/…`, `workers/…`, `tests/…` and the like."""
    path_of_ours = re.compile(r"(?<![\w/.{-])((?:kafscale|workers|supervisor|tests|loadtest|docs)/[\w/]+\.(?:py|md))\b")
    broken = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in tracked("*.md", "*.py", "Makefile", ".ci")
        for name in path_of_ours.findall(page.read_text())
        if not (ROOT / name).exists() and name not in NOT_THERE
    ]
    assert broken == []


def test_nothing_depends_on_one_persons_machine() -> None:
    """No file names a folder of somebody's home."""
    private = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt)/\w")
    found = [str(path.relative_to(ROOT)) for path in tracked() if private.search(path.read_text(errors="replace"))]
    assert [name for name in found if name != "tests/unit/test_repository.py"] == []
