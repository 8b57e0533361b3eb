"""Settings: what can be set (`declarations`), how texts become values (`values`), where they come from (`sources`)."""

from kafscale.config.declarations import DECLARATIONS, Declaration, Setting, Settings
from kafscale.config.endpoint import Endpoint
from kafscale.config.sources import Resolved, Source, resolve

__all__ = ["DECLARATIONS", "Declaration", "Endpoint", "Resolved", "Setting", "Settings", "Source", "resolve"]
