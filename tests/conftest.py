"""What holds for all tests: an example takes as long as the machine needs, which may have other work."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")
