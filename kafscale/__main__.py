"""The door of the program: `kafscale` and `python -m kafscale`. Makes sure that what it opens into is ours.

`supervisor` and `workers` are plain names: PyPI has a distribution called supervisor, and `python -m` looks into the
current folder first. So the check stands before the first import of either.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import kafscale

# A module of PyPI's supervisor that never was one of ours: installed beside us, its files lie in our folder.
_FOREIGN_MODULE = "supervisord.py"


def main() -> NoReturn:
    """Run the command line and exit."""
    if not __debug__:
        # They stand between a defect and what can't be written twice.
        print("kafscale: Python must keep its assertions: run without -O and PYTHONOPTIMIZE", file=sys.stderr)
        sys.exit(1)
    complaint = foreign_package(Path(kafscale.__file__).resolve().parent.parent)
    if complaint is not None:
        print(f"kafscale: {complaint}", file=sys.stderr)
        sys.exit(1)
    from supervisor.cli import main as command_line

    command_line()


def foreign_package(home: Path) -> str | None:
    """Say which of our top-level packages would be imported from elsewhere than `home`, or is mixed with another's."""
    for name in ("supervisor", "workers"):
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        found_in = origin.parent if origin is not None else None
        if found_in != home / name or (home / name / _FOREIGN_MODULE).exists():
            return (
                f"the package {name!r} in {str(found_in or 'no folder')!r} is not Kafscale's alone: run from another "
                "folder, and install Kafscale in an environment of its own (pipx, uvx or a venv)"
            )
    return None


if __name__ == "__main__":
    main()
