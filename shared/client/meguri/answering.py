"""What all commands share: one line for what went wrong, JSON or words for what came out."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from meguri.client import MeguriClientError
from meguri.provisioning import BrokerAway, NoRoom

console = Console(highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def answer(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what went wrong into one line and exit code 1."""

    @wraps(command)
    def answered(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (MeguriClientError, BrokerAway, NoRoom) as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")

    return answered


def fail(reason: str) -> NoReturn:
    complain(reason)
    raise typer.Exit(1)


def complain(reason: str) -> None:
    print(f"meguri: {reason}", file=sys.stderr)  # noqa: T201


def give(as_json: bool, data: Any, shown: Callable[[Console, Any], None]) -> None:
    """Print data, as JSON or as `shown` puts it."""
    if as_json:
        print(json.dumps(data, indent=2, default=str))  # noqa: T201
    else:
        shown(console, data)


def line(data: Any) -> None:
    """Print data as one line of JSON, at once."""
    print(json.dumps(data, default=str), flush=True)  # noqa: T201
