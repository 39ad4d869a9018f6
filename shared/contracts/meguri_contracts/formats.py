"""Files of rows, wherever they are read: as data that arrived, or to be predicted."""

FORMATS = {
    "csv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "arrow": "arrow",
    "ipc": "arrow",
    "feather": "arrow",
}
"""Endings of file names, and the format that each stands for."""
