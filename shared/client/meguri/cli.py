"""The command line of upstreams and operators. Every command takes --json; what it shows comes from the services' routes."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from meguri import client as sdk
from meguri import show, traces
from meguri.client import Meguri, MeguriClientError, Refused
from meguri.provisioning import BrokerAway, NoRoom, provision
from meguri_contracts.topology import PORTS, TRAINING_FITS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Reason = Annotated[str, typer.Option(help="Why; stands in the log.")]
FITS = (
    "Fits that all replicas of training together may have in hand; each replica has one at a time. A fit that waits to be "
    "tried again counts too. May be changed at any time by provisioning again."
)


LOG_LIMIT = (
    "Bytes that the log may have; -1 for no limit. At the limit nothing is deleted: who publishes is refused and told so "
    "(HTTP 503), services wait and say so, and all goes on once this is raised."
)


def _answer(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what went wrong into one line and exit code 1."""

    @wraps(command)
    def answered(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (MeguriClientError, BrokerAway, NoRoom) as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")

    return answered


def _fail(reason: str) -> NoReturn:
    print(f"meguri: {reason}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(1)


def _print(as_json: bool, data: Any, shown: Callable[[Console, Any], None]) -> None:
    if as_json:
        print(json.dumps(data, indent=2, default=str))  # noqa: T201
    else:
        shown(console, data)


@app.command("provision")
@_answer
def provision_(
    replicas: Annotated[int, typer.Option(help="Copies of each stream on a cluster of brokers.")] = 1,
    fits_in_flight: Annotated[int, typer.Option(min=1, envvar="MEGURI_FITS_IN_FLIGHT", help=FITS)] = (
        TRAINING_FITS.max_ack_pending
    ),
    log_max_bytes: Annotated[int, typer.Option(envvar="MEGURI_LOG_MAX_BYTES", help=LOG_LIMIT)] = -1,
    as_json: Json = False,
) -> None:
    """Create or update the streams and consumers that the services need. Run it before each rollout."""
    done = asyncio.run(
        provision(sdk.broker(), replicas=replicas, fits_in_flight=fits_in_flight, log_max_bytes=log_max_bytes)
    )
    _print(as_json, [one.as_dict() for one in done], show.provisioned)


@app.command()
@_answer
def status(as_json: Json = False) -> None:
    """Is every service ready, and if not, why? Exit code 1 when one is not."""
    with Meguri() as meguri:
        found = [meguri.health(service) for service in PORTS if service != "console"]
    _print(as_json, found, show.status)
    if not all(one["ready"] for one in found):
        raise typer.Exit(1)


@app.command()
@_answer
def apply(spec: Annotated[Path, typer.Argument(help="A model spec, YAML.")], as_json: Json = False) -> None:
    """Apply a model spec. The same spec again changes nothing."""
    with Meguri() as meguri:
        _print(as_json, meguri.apply(spec.read_bytes()), show.said)


@app.command()
@_answer
def publish(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    file: Annotated[Path | None, typer.Argument(help="CSV, JSON Lines, Parquet or Arrow; is uploaded.")] = None,
    uri: Annotated[str | None, typer.Option(help="A file that ingest can read; is sent as a reference.")] = None,
    producer: Annotated[str, typer.Option(help="Who sends this.")] = "cli",
    id: Annotated[str | None, typer.Option(help="Id of the event; sent twice, it has its effect once.")] = None,
    as_json: Json = False,
) -> None:
    """Publish data: upload a file, or send a reference to one."""
    if (file is None) == (uri is None):
        _fail("exactly one of FILE and --uri is needed")
    with Meguri() as meguri:
        if file is not None:
            event = meguri.upload(dataset, file, producer=producer, id=id)["event"]
        else:
            try:
                event = asyncio.run(sdk.publish(dataset, uri=uri, producer=producer, id=id))
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the user needs one line
                _fail(f"the broker at {sdk.broker()} did not take the event: {error or type(error).__name__}")
        _print(as_json, {"event": event}, show.published)


@app.command()
@_answer
def receipt(
    event: Annotated[str, typer.Argument(help="Id of the event.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait until it is no longer waiting.")] = 0,
    as_json: Json = False,
) -> None:
    """What became of an event: accepted, rejected, waiting or parked and why, and the models that were trained on it."""
    with Meguri() as meguri:
        _print(as_json, meguri.receipt(event, wait=wait), show.receipt)


@app.command()
@_answer
def models(
    name: Annotated[str | None, typer.Argument(help="One model in detail.")] = None, as_json: Json = False
) -> None:
    """All models with their champions, or one with its versions, verdicts and numbers."""
    with Meguri() as meguri:
        if name is None:
            _print(as_json, meguri.models(), show.models)
        else:
            _print(as_json, meguri.model(name) | {"training": meguri.waits_for(name)}, show.model)


@app.command()
@_answer
def train(model: Model, reason: Reason = "asked for by hand", as_json: Json = False) -> None:
    """Ask for a run now, whatever the triggers say."""
    with Meguri() as meguri:
        _print(as_json, meguri.train(model, reason), show.said)


@app.command()
@_answer
def promote(
    model: Model,
    version: Annotated[int, typer.Argument(help="Version to make champion.")],
    reason: Reason = "promoted by hand",
    as_json: Json = False,
) -> None:
    """Make a version champion; also the answer to an approval request."""
    with Meguri() as meguri:
        _print(as_json, meguri.promote(model, version, reason), show.said)


@app.command()
@_answer
def rollback(model: Model, reason: Reason = "asked for by hand", as_json: Json = False) -> None:
    """Go back to the champion before the present one."""
    with Meguri() as meguri:
        _print(as_json, meguri.rollback(model, reason), show.said)


@app.command()
@_answer
def episodes(
    model: Annotated[str | None, typer.Argument(help="Of one model only.")] = None, as_json: Json = False
) -> None:
    """Episodes of drift: when they began and ended, which feature, which producer."""
    with Meguri() as meguri:
        _print(as_json, meguri.episodes(model), show.episodes)


@app.command()
@_answer
def why(
    prediction: Annotated[str, typer.Argument(help="Id of the prediction, as it stands in the answer.")],
    as_json: Json = False,
) -> None:
    """Why a prediction came out as it did: its version, the run, the data and who sent it."""
    with Meguri() as meguri:
        _print(as_json, meguri.why(prediction), show.why)


@app.command()
@_answer
def trace(
    id: Annotated[str, typer.Argument(help="Of a trace, event, prediction, run, journey or episode.")],
    folder: Annotated[Path | None, typer.Option(help="Where the services write their traces.")] = None,
    as_json: Json = False,
) -> None:
    """Draw the trace that an id belongs to, and name its neighbours."""
    where = folder or Path(os.environ.get("MEGURI_VAR", "var")) / "traces"
    spans = traces.read(where)
    found = traces.traces_of(spans, id)
    if not found:
        raise Refused(
            404, f"no span in {where} is of {id!r}; predictions are sampled, and a span is there a second later"
        )
    drawn = [(traces.waterfall(spans, one), *traces.neighbours(spans, one)) for one in found]
    _print(as_json, show.traces_as_data(drawn), lambda out, _: show.waterfalls(out, drawn))


def main() -> None:
    app()
