"""Every size of request, encoding and number of connections: ours beside the server written by hand."""

from collections.abc import Iterator

from tests.bench.serving import requests
from tests.bench.serving.comparing import Side
from tests.bench.serving.load import Cell, measure
from tests.bench.serving.models import MANY, Model
from tests.bench.serving.requests import NotMeasured
from tests.bench.serving.setting import Setting

CONNECTIONS = (1, 16, 64)


def everything(setting: Setting) -> Iterator[str]:
    """Measure each once, for `seconds`: the rows below it have the pairs."""
    yield f"{'model':7}{'rows':>5}  {'server':14}" + "".join(f"{f'{c} connections':>40}" for c in CONNECTIONS)
    yield f"{'':28}" + f"{'req/s   us   p50 / p99 ms':>40}" * len(CONNECTIONS)
    for model in (setting.iris, setting.cancer):
        for rows in (1, MANY):
            for name, side in _sides(setting, model, rows):
                try:
                    requests.check(*side, model, rows)
                except NotMeasured as error:
                    yield f"{model.name:7}{rows:5}  {name:14}  {error}"
                    continue
                cells = [measure(*side, connections, setting.seconds) for connections in CONNECTIONS]
                yield f"{model.name:7}{rows:5}  {name:14}" + "".join(map(_cell, cells))


def _sides(setting: Setting, model: Model, rows: int) -> list[tuple[str, Side]]:
    ours = setting.ours.server
    return [
        ("ours, JSON", (ours, requests.to_us(model, rows))),
        ("ours, binary", (ours, requests.to_us_binary(model, rows))),
        ("by hand, async", (setting.by_hand(model, "async"), requests.to_them(model, rows))),
        ("by hand, def", (setting.by_hand(model, "def"), requests.to_them(model, rows))),
    ]


def _cell(cell: Cell) -> str:
    mark = f" {cell.load.failed} FAILED" if cell.load.failed else "*" if cell.client_was_the_limit else ""
    load = cell.load
    return f"{f'{cell.rate:,.0f}{mark}  {cell.cpu * 1e6:,.0f}  {load.p50 * 1e3:.2f} / {load.p99 * 1e3:.2f}':>40}"
