"""Domain errors, few kinds, named by what the caller must do.

They are raised near the cause and turned into Kafka error codes in one place (`workers/errors.py`), into exit codes in
another (`supervisor/cli.py`). A message says what was wrong, with which value, and what to do.
"""

from __future__ import annotations


class KafscaleError(Exception):
    """Root of everything that this project raises on purpose."""


class UsageError(KafscaleError):
    """A flag, variable, file or value that a person must mend. Exit code 2."""


class StartError(KafscaleError):
    """The broker cannot start here (port taken, directory locked, newer format). Exit code 1."""


class Invalid(KafscaleError):
    """What was sent is wrong and will stay wrong. `code` is the Kafka error code that says how."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Retry(KafscaleError):
    """Not now: the same call may succeed later. `code` is a retriable Kafka error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(KafscaleError):
    """Bytes that are no frame, header or message of the Kafka protocol: close the connection."""


class Corrupt(KafscaleError):
    """Stored bytes are not what was written. Never skipped, never taken for empty."""


class Misplaced(Corrupt):
    """What lies there is whole, and is not what its key says: it belongs elsewhere."""


class Fenced(KafscaleError):
    """Another has taken over: this incarnation must stop and may acknowledge nothing more."""


class CoordinationUnavailable(KafscaleError):
    """Coordination gives no answer. Nothing that was decided depends on it; try again later."""


class StoreError(KafscaleError):
    """The object store did not do what was asked."""


class ObjectExists(StoreError):
    """The key is taken: a put-if-absent lost."""


class ObjectMissing(StoreError):
    """There is no object of that key."""


class StoreUnavailable(StoreError):
    """The store refused for now; nothing was applied. Back off and try again."""


class StoreRefused(StoreUnavailable):
    """The store refused, nothing was applied, and it will go on refusing until a person mends something: credentials,
    a policy, the name of the bucket. A broker that runs may well wait for that; a command need not."""


class StoreIncapable(StoreRefused):
    """The store does not know how to do what was asked (501 NotImplemented), and won't learn it."""


class StoreUnclear(StoreError):
    """The store gave no clear answer: the write may or may not have been applied. Read back."""


class StoreFailed(StoreError):
    """The store can no longer be trusted (a failed fsync): the broker must stop."""
