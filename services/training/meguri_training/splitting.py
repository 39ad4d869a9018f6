"""Which rows are kept out of training: decided by what a row says, so that it stays on its side for ever.

Not by its position, nor by who else is there: a row that once trained a model can then never judge its successor.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

from meguri_contracts.errors import Invalid

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x6D65677572690001)
_ONE_NAN = np.float64(np.nan)


def holdout_mask(frame: pl.DataFrame, columns: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows are held out, about `share` of them, of shape [n].

    Pass the features without the target: rows that look alike then stay together, whatever their labels.
    """
    return held_out(row_hashes(frame, columns, seed), share)


def held_out(hashes: Hashes, share: float) -> NDArray[np.bool_]:
    """Return which rows are held out: those whose hash lies in the lowest `share` of all 64-bit numbers."""
    return hashes < np.uint64(int(share * 2.0**64))


def row_hashes(frame: pl.DataFrame, columns: Sequence[str], seed: int) -> Hashes:
    """Return a 64-bit hash per row, of shape [n], that depends on values, column names and seed alone.

    Numbers, integers and booleans of equal value hash alike, so a column may change between them; the order of columns
    does not matter. Mixing is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014; constants as in Vigna's public-domain splitmix64.c), chained over the columns; texts come in
    as BLAKE2b. Raises Invalid for columns of other types.
    """
    hashes = np.full(frame.height, _mixed(np.array([seed], dtype=np.uint64))[0])
    for name, bits in sorted(_bits(frame.select(columns)).items()):
        hashes = _mixed(hashes ^ _mixed(bits ^ _text_hash(name)))
    return hashes


def _mixed(z: Hashes) -> Hashes:
    z = z + _GOLDEN  # wraps around, as it should
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _bits(frame: pl.DataFrame) -> dict[str, Hashes]:
    schema = frame.schema
    numbers = [name for name, dtype in schema.items() if dtype.is_numeric() or dtype == pl.Boolean]
    texts = [name for name, dtype in schema.items() if dtype == pl.String]
    if strange := schema.keys() - {*numbers, *texts}:
        name = min(strange)
        raise Invalid(f"column {name!r} holds {schema[name]}; rows are split by numbers, booleans and texts")
    # One cast for all columns: a query per column would cost more than the hashing.
    values = frame.select(pl.col(numbers).cast(pl.Float64)) if numbers else frame.clear()
    return {
        **{name: _number_bits(values[name]) for name in numbers},
        **{name: _text_bits(frame[name]) for name in texts},
    }


def _number_bits(column: pl.Series) -> Hashes:
    values = column.to_numpy() + 0.0  # minus zero becomes zero, null becomes NaN
    bits = np.where(np.isnan(values), _ONE_NAN, values).view(np.uint64)
    return np.where(column.is_null().to_numpy(), _NULL, bits) if column.null_count() else bits


def _text_bits(column: pl.Series) -> Hashes:
    distinct = {text: _NULL if text is None else _text_hash(text) for text in column.unique()}
    return np.array([distinct[text] for text in column], dtype=np.uint64)


def _text_hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))
