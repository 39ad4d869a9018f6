"""An evaluator and a writer as packages bring them: the fixture `plugin` installs them."""

PLUGIN = """
import os
from pathlib import Path

import polars as pl

HERE = Path(__file__).parent

def evaluate(predictions):
    if (HERE / "broken").exists():
        raise ZeroDivisionError("nothing to divide by")
    while (HERE / "stuck").exists():
        pass
    if (HERE / "odd").exists() and (predictions["x"] == 13).any():
        os._exit(3)
    key = pl.col("prediction_id").str.replace(r":\\d+$", "").alias("key")
    first = [pl.col("time").first(), pl.col("producer").first(), pl.col("x").round().first().alias("size")]
    return predictions.group_by(key, maintain_order=True).agg(*first, pl.len().alias("rows"))

def write(rows):
    switch = HERE / "at_most"
    return rows.filter(pl.col("size") <= int(switch.read_text())) if switch.exists() else rows
"""
ENTRY_POINTS = "[meguri.evaluators]\nsizes = sizes_plugin:evaluate\n[meguri.writers]\nsizes = sizes_plugin:write\n"
