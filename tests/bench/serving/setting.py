"""Everything that is measured, started when it is first asked for and stopped at the end."""

import asyncio
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Literal

from tests.bench.serving import models
from tests.bench.serving.models import Model
from tests.bench.serving.ours import Ours, inference
from tests.bench.serving.servers import Server, running
from tests.conftest import free_port

Route = Literal["async", "def"]


class Setting:
    """The servers and models of a run. `pairs` times `seconds` is how long a comparison measures each side."""

    def __init__(self, folder: Path, stack: ExitStack, pairs: int, seconds: int) -> None:
        self.folder = folder
        self.pairs = pairs
        self.seconds = seconds
        self._stack = stack
        self._by_hand: dict[tuple[str, Route], Server] = {}

    @cached_property
    def ours(self) -> Ours:
        """Inference, serving `iris` and `cancer`."""
        ours = self._stack.enter_context(inference(self.folder / "var"))
        for model in (self.iris, self.cancer):
            asyncio.run(ours.deploy(model))
        return ours

    @cached_property
    def iris(self) -> Model:
        return models.iris(self.folder)

    @cached_property
    def cancer(self) -> Model:
        return models.cancer(self.folder)

    @cached_property
    def hello(self) -> Server:
        return self._yardstick("hello", "/")

    def by_hand(self, model: Model, route: Route) -> Server:
        """Return the server written by hand for a model, with one kind of route."""
        key = (model.name, route)
        if key not in self._by_hand:
            file = self.folder / f"{model.name}.skops"
            file.write_bytes(model.fitted.skops)
            self._by_hand[key] = self._yardstick("fastapi", "/ready", str(file), route)
        return self._by_hand[key]

    def _yardstick(self, kind: str, ready: str, *more: str) -> Server:
        port = free_port()
        log = self.folder / f"{kind}-{port}.log"
        module = "tests.bench.serving.yardstick"
        return self._stack.enter_context(running(module, kind, str(port), *more, port=port, ready=ready, log=log))
