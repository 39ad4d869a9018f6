"""What we are measured against, each a process of its own.

    python -m tests.bench.serving.yardstick fastapi PORT MODEL.skops async|def   a model behind FastAPI, written by hand
    python -m tests.bench.serving.yardstick hello PORT                          the bare server: uvicorn and an ASGI callable
    python -m tests.bench.serving.yardstick onnx MODEL.onnx ROWS.npy SECONDS   ONNX Runtime: calls a second, CPU seconds of one

The first is what one would write without us: validated by pydantic, the model loaded once, one `predict_proba` a request,
the response model written by pydantic. A route is `async def` for a model that answers at once, `def` for one that takes
its time: that is the faster way for each.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import skops.io
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field, FiniteFloat

from meguri_contracts.trusted import TRUSTED_TYPES
from meguri_training import evaluating


def fastapi(model: Any, kind: str) -> FastAPI:
    """Return an application that answers `POST /predict` from a classifier of scikit-learn."""
    width = model.n_features_in_
    classes = model.classes_

    class Rows(BaseModel):
        rows: list[Annotated[list[FiniteFloat], Field(min_length=width, max_length=width)]] = Field(min_length=1)

    class Answer(BaseModel):
        labels: list[int]
        probabilities: list[list[float]]

    app = FastAPI()

    @app.get("/ready")
    def ready() -> bool:
        return True

    def predict(asked: Rows) -> Answer:
        probabilities = model.predict_proba(np.array(asked.rows))
        labels = classes[probabilities.argmax(axis=1)]
        return Answer(labels=labels.tolist(), probabilities=probabilities.tolist())

    async def predict_in_the_loop(asked: Rows) -> Answer:
        return predict(asked)

    app.post("/predict")(predict if kind == "def" else predict_in_the_loop)
    return app


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer anything with two words."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"11")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello world"})


def onnx_calls(onnx: bytes, rows: Any, seconds: float) -> tuple[float, float]:
    """Return how often a second ONNX Runtime answers for all `rows`, on one thread, and the processor time of a call."""
    session = evaluating.open_onnx(onnx)
    asked = {session.get_inputs()[0].name: rows}
    session.run(None, asked)
    calls, began, cpu = 0, time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - began) < seconds:
        session.run(None, asked)
        calls += 1
    return calls / took, (time.process_time() - cpu) / calls


def main(what: str, *arguments: str) -> None:
    match what, *arguments:
        case "fastapi", port, file, kind:
            serve(fastapi(skops.io.load(file, trusted=TRUSTED_TYPES), kind), int(port))
        case "hello", port:
            serve(hello, int(port))
        case "onnx", file, rows, seconds:
            print(*onnx_calls(Path(file).read_bytes(), np.load(rows), float(seconds)))
        case _:
            sys.exit(__doc__)


def serve(app: Any, port: int) -> None:
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
