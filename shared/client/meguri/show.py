"""What the commands print for people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from meguri.traces import WIDTH, Span, Waterfall

Drawn = tuple[Waterfall, list[Span], list[Span]]

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
_VERDICTS = {
    "promoted": "green",
    "canary": "yellow",
    "A/B test": "yellow",
    "taken back": "red",
    "rejected": "red",
    "committed": "green",
    "waiting": "yellow",
    "parked": "red",
}


def provisioned(out: Console, done: Sequence[dict[str, str]]) -> None:
    for one in done:
        out.print(f"{one['done']:8} {one['what']} {one['name']}")


def said(out: Console, answer: dict[str, Any]) -> None:
    for event in answer["events"] or [{"type": "nothing: it was so already"}]:
        version = f" version {event['version']}" if "version" in event else ""
        out.print(f"said {event['type']}{version}")


def published(out: Console, answer: dict[str, str]) -> None:
    out.print(f"event {answer['event']}\nmeguri receipt {answer['event']}")


def labelled(out: Console, answer: dict[str, Any]) -> None:
    labels = "1 label" if answer["labels"] == 1 else f"{answer['labels']:,} labels"
    out.print(f"{labels} of {escape(answer['model'])}, in event {escape(', '.join(answer['events']))}")


def receipt(out: Console, one: dict[str, Any]) -> None:
    out.print(f"event     {escape(one['event'])}, from {escape(one['producer'])}, at {one['arrived']}")
    out.print(f"status    {_coloured(one['status'])} {escape(one['reason'])}")
    if one["waits_for"]:
        out.print(f"waits for {escape(one['waits_for'])}")
    if one["status"] == "parked":
        out.print(f"repair    meguri redrive ingest-arrivals/{one['letter']} --edit")
    if one["dataset_version"] is not None:
        kept = f", {one['quarantined']} quarantined" if one["quarantined"] else ""
        out.print(f"data      {one['dataset']} version {one['dataset_version']}: {one['rows']} rows{kept}")
    if one["heard"] > 1:
        taken = ", taken once" if one["status"] == "committed" else ""
        out.print(f"heard     {one['heard']} times{taken}")
    for use in one["used_in"]:
        version = f"version {use['model_version']} of run {use['run']}" if use["model_version"] else f"run {use['run']}"
        out.print(f"used in   {use['model']} {version} ({_coloured(use['verdict'])})")


def models(out: Console, found: Sequence[dict[str, Any]]) -> None:
    table = Table("model", "champion", "since", "newest", "verdict", "metrics", box=None)
    for one in found:
        newest = one["newest"] or {}
        table.add_row(
            one["model"],
            str(one["champion"] or "none"),
            one["since"] or "",
            str(newest.get("version", "none")),
            _coloured(newest.get("verdict", "")),
            _numbers(newest.get("metrics", {})),
        )
    out.print(table)


def model(out: Console, one: dict[str, Any]) -> None:
    training = one["training"]
    out.print(f"{one['model']}: champion {one['champion'] or 'none'}, spec version {one['spec_version']}")
    if others := [f"version {part['version']} is {part['role']}" for part in one["plan"][1:]]:
        out.print(f"{', '.join(others)}: `meguri rollout {one['model']}`")
    out.print(f"training waits for: {escape(training['waits_for'])}")
    if one["runs"] and one["runs"][0]["status"] == "failed":
        out.print(f"[red]the last run failed[/]: {escape(one['runs'][0]['reason'])}")
    table = Table("version", "verdict", "metrics", "champion then", "data", "rows", "fit", box=None)
    for version in one["versions"]:
        compared = version["compared_with"]
        table.add_row(
            str(version["version"]),
            _coloured(version["verdict"]),
            _numbers(version["metrics"]),
            f"v{compared['version']} {_numbers(compared['metrics'])}" if compared else "none",
            f"{version['dataset']} v{version['dataset_version']}",
            f"{version['train_rows']}+{version['holdout_rows']}",
            f"{version['fit_seconds']:.2f} s",
        )
    out.print(table)
    for version in one["versions"]:
        if version["verdict"] != "promoted":
            out.print(f"version {version['version']}: {escape(version['reason'])}")


def why(out: Console, found: dict[str, Any]) -> None:
    prediction, version, lineage = found["prediction"], found["version"], found["lineage"]
    answer = prediction.get("label", prediction.get("prediction"))
    sure = f" ({prediction['probability']:.1%})" if "probability" in prediction else ""
    out.print(f"prediction {prediction['prediction_id']}: {answer}{sure}, at {prediction['time']}")
    out.print(f"  asked by  {escape(prediction['producer'])}; meguri trace {prediction['trace_id']}")
    for shadow in prediction.get("shadows", []):
        asked = shadow.get("label", shadow.get("prediction"))
        out.print(f"  shadow    version {shadow['version']} would have said {escape(str(asked))}")
    role = prediction.get("_role") or "champion"
    part = "" if role == "champion" else " as an arm of an A/B test" if role == "arm" else f" as {role}"
    out.print(f"  made by   {prediction['model']} version {prediction['version']}{part}")
    out.print(f"            now {version['verdict']}: {version['reason']}")
    for rule in version["judged"]:
        compared = f", champion {_numbers(rule['champion'])}" if rule["champion"] else ""
        out.print(f"            {rule['rule']}: {_numbers(rule['candidate'])}{compared}")
    run = lineage["run"] or {"run": version["run"], "triggers": []}
    triggers = ", ".join(f"{t['kind']} {t['event']}" for t in run["triggers"])
    out.print(f"  run       {run['run']}, because of {triggers or 'unknown'}; meguri trace {run['run']}")
    out.print(
        f"  data      {lineage['dataset']} version {lineage['dataset_version']} ({lineage['dataset_digest'][:12]})"
    )
    for arrival in lineage["arrivals"]:
        out.print(
            f"            {arrival['rows']:5} rows from {escape(arrival['producer'])}, event {escape(arrival['event'])}"
        )
    for episode in found["episodes"]:
        about = f"{episode['about']} {escape(episode['subject'])}"
        from_ = f" from {escape(episode['producer'])}" if episode["producer"] else ""
        out.print(f"  episode   {about}{from_} since {episode['opened'][:19].replace('T', ' ')}")


def waterfalls(out: Console, drawn: Sequence[Drawn]) -> None:
    for fall, came_from, led_to in drawn:
        waits = f", {len(fall.waits)} waits of {sum(fall.waits):.1f} s folded (⋯)" if fall.waits else ""
        out.print(
            f"[bold]trace {fall.trace}[/]: {fall.seconds:.3f} s from end to end, {fall.busy:.3f} s at work{waits}"
        )
        for span in came_from:
            out.print(f"  came from [dim]{_named(span)}[/]")
        services = {service: _COLOURS[i % len(_COLOURS)] for i, service in enumerate(_services(fall))}
        for line in fall.lines:
            span, colour = line.span, services[line.span.service]
            bar = Text(" " * line.first, end="").append("█" * (line.last - line.first), style=colour)
            bar.pad_right(WIDTH - len(bar))
            label = f"{'  ' * line.depth}{span.name}{' ✗' if span.failed else ''}"
            name = Text(f"  {span.service:11.11} ", style=colour).append(
                f"{label:42.42}", style="red" if span.failed else ""
            )
            out.print(name + bar + Text(f" {(span.end - span.start) / 1e6:9.1f} ms"), no_wrap=True, overflow="ignore")
        for span in led_to:
            out.print(f"  led to    [dim]{_named(span)}[/]")


def traces_as_data(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    return [
        {
            "trace": fall.trace,
            "seconds": fall.seconds,
            "busy": fall.busy,
            "waits": fall.waits,
            "spans": [vars(line.span) | {"depth": line.depth} for line in fall.lines],
            "came_from": [vars(span) for span in came_from],
            "led_to": [vars(span) for span in led_to],
        }
        for fall, came_from, led_to in drawn
    ]


def restored_log(out: Console, done: dict[str, Any]) -> None:
    if done["whole"]:
        out.print(f"the log is whole: {done['messages']} messages, nothing was changed")
        return
    out.print(f"the log is back: {done['messages']} messages")
    if done["lost"]:
        out.print(f"[yellow]{done['lost']} of them are lost for good: a marker stands in the place of each[/]")
    if done["appended"]:
        out.print(f"{done['appended']} that came after the loss follow the others")


def backed_up(out: Console, manifest: dict[str, Any]) -> None:
    size = sum(file["size"] for file in manifest["files"].values())
    out.print(f"the log up to {manifest['sequence']}, {len(manifest['files'])} files, {size / 2**20:.1f} MiB")
    for service, found in manifest["services"].items():
        out.print(f"{service:11} at {found['position']} {found['digest']}")


def verified(out: Console, verdicts: Sequence[dict[str, Any]]) -> None:
    for one in verdicts:
        said = f"[red]differs[/]: {', '.join(one['differ'])}" if one["differ"] else "[green]as backed up[/]"
        out.print(f"{one['service']:11} at {one['position']} {said}")


def _named(span: Span) -> str:
    return f"{span.service}: {span.name}, trace {span.trace}"


def _services(fall: Waterfall) -> list[str]:
    return list(dict.fromkeys(line.span.service for line in fall.lines))


def _coloured(word: str) -> str:
    colour = _VERDICTS.get(word)
    return f"[{colour}]{word}[/]" if colour else escape(word)


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
