"""What goes wrong in the incident: a writer that drops rows as long as a switch is on. A use case needs none."""

import logging
import os

import polars as pl

logger = logging.getLogger(__name__)

SWITCH = "MEGURI_PERSON_COUNTER_MAX"
"""Environment variable that breaks the writer: rows with more persons than this are dropped."""


def write(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that are kept: all of them, unless the switch is on."""
    most = os.environ.get(SWITCH)
    kept = rows.filter(pl.col("persons") <= int(most)) if most else rows
    if lost := rows.height - kept.height:
        logger.error("dropped %d rows: more than %s persons", lost, most)
    return kept
