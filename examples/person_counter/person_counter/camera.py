"""A simulated camera: sends its frames to the detector, or to those who learn from them.

python -m person_counter.camera gate-a --learn 60           frames with the truth, as rows to train on
python -m person_counter.camera gate-a --frames 100         frames to be predicted, each one request
"""

import argparse
import asyncio
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import polars as pl

from meguri.client import address, publish
from person_counter.scene import Frame, frames, shows_person
from person_counter.windows import features

MODEL, DATASET = "person-detector", "person-windows"


def learn_from(camera: str, seen: Iterator[Frame]) -> str:
    """Publish a row per window of the frames, with the truth, as one file; return the event's id."""
    rows = [np.column_stack([features(frame.pixels), shows_person(frame.persons)]) for frame in seen]
    names = [*(f"hog_{n}" for n in range(rows[0].shape[1] - 1)), "person"]
    path = Path(os.environ.get("MEGURI_VAR", "var")) / "incoming" / f"{camera}-{os.urandom(4).hex()}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame(np.concatenate(rows), schema=names).with_columns(pl.col("person").cast(pl.Int64))
    table.write_parquet(path)
    return asyncio.run(publish(DATASET, uri=path.absolute().as_uri(), producer=camera))


async def send(camera: str, seen: Iterator[Frame], *, name: str) -> None:
    """Have the detector look at frames, each as one request; frame n is called `<name>-<n>`."""
    async with httpx.AsyncClient(base_url=address("inference"), timeout=30) as inference:
        for number, frame in enumerate(seen):
            rows = features(frame.pixels)
            tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
            about = {"producer": camera, "entity": f"{name}-{number}"}
            answer = await inference.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor], "parameters": about})
            answer.raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camera", help="who says that it sends these, say gate-a")
    parser.add_argument("--learn", type=int, help="frames that are published with the truth")
    parser.add_argument("--frames", type=int, default=100, help="frames that are predicted")
    parser.add_argument("--seed", type=int, help="of the scene; another every time if not given")
    args = parser.parse_args()
    seed = int.from_bytes(os.urandom(4)) if args.seed is None else args.seed
    seen = islice(frames(seed), args.learn or args.frames)
    if args.learn:
        print(learn_from(args.camera, seen))
    else:
        asyncio.run(send(args.camera, seen, name=f"{args.camera}-{seed}"))


if __name__ == "__main__":
    main()
