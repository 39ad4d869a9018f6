"""The command line of upstreams and operators. Every command takes --json."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from meguri import client as sdk
from meguri import evaluating, keeping, labelling, operating, scoring, serving, show, traces, watching, whatif
from meguri.answering import Json, answer, complain, fail, give
from meguri.client import Meguri, MeguriClientError, Refused
from meguri.provisioning import provision
from meguri_contracts.topology import TRAINING_FITS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

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


@app.command("provision")
@answer
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
    give(as_json, [one.as_dict() for one in done], show.provisioned)


@app.command()
@answer
def apply(spec: Annotated[Path, typer.Argument(help="A model spec, YAML.")], as_json: Json = False) -> None:
    """Apply a model spec. The same spec again changes nothing."""
    with Meguri() as meguri:
        applied = meguri.apply(spec.read_bytes())
        give(as_json, applied, show.said)
        for event in applied["events"]:
            for trouble in _untold(meguri, event["spec"].get("notify", {}).get("urls", ())):
                complain(f"applied, but {trouble}")


@app.command()
@answer
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
        fail("exactly one of FILE and --uri is needed")
    with Meguri() as meguri:
        if file is not None:
            event = meguri.upload(dataset, file, producer=producer, id=id)["event"]
        else:
            try:
                event = asyncio.run(sdk.publish(dataset, uri=uri, producer=producer, id=id))
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the user needs one line
                fail(f"the broker at {sdk.broker()} did not take the event: {error or type(error).__name__}")
        give(as_json, {"event": event}, show.published)


@app.command()
@answer
def receipt(
    event: Annotated[str, typer.Argument(help="Id of the event.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait until it is no longer waiting.")] = 0,
    as_json: Json = False,
) -> None:
    """What became of an event: accepted, rejected, waiting or parked and why, and the models that were trained on it."""
    with Meguri() as meguri:
        give(as_json, meguri.receipt(event, wait=wait), show.receipt)


@app.command()
@answer
def models(
    name: Annotated[str | None, typer.Argument(help="One model in detail.")] = None, as_json: Json = False
) -> None:
    """All models with their champions, or one with its versions, verdicts and numbers."""
    with Meguri() as meguri:
        if name is None:
            give(as_json, meguri.models(), show.models)
        else:
            give(as_json, meguri.model(name) | {"training": meguri.waits_for(name)}, show.model)


@app.command()
@answer
def train(model: Model, reason: Reason = "asked for by hand", as_json: Json = False) -> None:
    """Ask for a run now, whatever the triggers say."""
    with Meguri() as meguri:
        give(as_json, meguri.train(model, reason), show.said)


@app.command()
@answer
def promote(
    model: Model,
    version: Annotated[int, typer.Argument(help="Version to make champion.")],
    reason: Reason = "promoted by hand",
    as_json: Json = False,
) -> None:
    """Make a version champion, which ends a canary or an A/B test; also the answer to an approval request."""
    with Meguri() as meguri:
        give(as_json, meguri.promote(model, version, reason), show.said)


@app.command()
@answer
def rollback(model: Model, reason: Reason = "asked for by hand", as_json: Json = False) -> None:
    """End a canary or an A/B test; when there is none, go back to the champion before the present one."""
    with Meguri() as meguri:
        give(as_json, meguri.rollback(model, reason), show.said)


@app.command()
@answer
def why(
    prediction: Annotated[str, typer.Argument(help="Id of the prediction, as it stands in the answer.")],
    as_json: Json = False,
) -> None:
    """Why a prediction came out as it did: its version, the run, the data and who sent it."""
    with Meguri() as meguri:
        give(as_json, meguri.why(prediction), show.why)


@app.command()
@answer
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
            404,
            f"no span in {where} is of {id!r}: a span is there a second later, and only some predictions have any "
            "(MEGURI_INFERENCE_SAMPLING); `meguri why` explains each of them",
        )
    drawn = [(traces.waterfall(spans, one), *traces.neighbours(spans, one)) for one in found]
    give(as_json, show.traces_as_data(drawn), lambda out, _: show.waterfalls(out, drawn))


def _untold(meguri: Meguri, urls: Sequence[str]) -> Sequence[str]:
    try:
        return meguri.untold(urls)
    except MeguriClientError as error:
        return [f"whether anybody can be told of episodes is not known: {error}"]


watching.add_to(app)
serving.add_to(app)
scoring.add_to(app)
operating.add_to(app)
keeping.add_to(app)
labelling.add_to(app)
evaluating.add_to(app)
whatif.add_to(app)


def main() -> None:
    app()
