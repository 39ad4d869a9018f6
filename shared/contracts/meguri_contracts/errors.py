"""The error tree. The class says what to do; the message says what was wrong and how to put it right.

MeguriError
├── PermanentError      trying again cannot help: the message is set aside, HTTP answers 4xx
│   ├── NotFound        404
│   ├── Invalid         422
│   │   └── Malformed   the message itself cannot be read
│   │       └── Newer   it is of a version that is not known here yet
│   ├── Conflict        409
│   └── TooLarge        413
└── TemporaryError      trying again later can help: the message comes back, HTTP answers 503
    └── Busy            more is coming in than can be dealt with: HTTP answers 429

An error knows neither NATS nor HTTP; `bus.py` and `service.py` of the chassis translate.
"""


class MeguriError(Exception):
    """Base of every error that meguri raises on purpose."""


class PermanentError(MeguriError):
    """The same input would fail again."""


class NotFound(PermanentError):
    """What was asked for does not exist."""


class Invalid(PermanentError):
    """The input breaks a rule; the message names the field and the rule."""


class Malformed(Invalid):
    """A message that cannot be read as the event that its subject names."""


class Newer(Malformed):
    """An event of a newer version of its type than this process knows."""


class Conflict(PermanentError):
    """The input is fine, but the present state forbids it."""


class TooLarge(PermanentError):
    """The input is larger than the limit that the message names."""


class TemporaryError(MeguriError):
    """The same input may succeed later: something outside of it is not ready."""


class Busy(TemporaryError):
    """More comes in than can be dealt with; whoever sends should wait `seconds` and try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds
