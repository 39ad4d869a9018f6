"""Names and ids: what a dataset, a model or a consumer may be called, and how an event's id follows from its cause."""

import re
from typing import Annotated
from uuid import UUID, uuid5

from pydantic import StringConstraints

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"

DatasetName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ConsumerName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
MAX_ID_LENGTH = 256
EventId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]
RunId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
BatchId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
EpisodeId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


def is_name(text: str) -> bool:
    """Whether a dataset or a model may be called so."""
    return re.fullmatch(NAME_PATTERN, text) is not None


_NAMESPACE = UUID("6d656775-7269-5000-8000-000000000000")


def derived_id(cause: str, *what: str) -> str:
    """Return the id that follows from `cause`: a cause heard twice gives the same id, so its effect happens once.

    The id is a UUID version 5 (RFC 9562) over the cause and everything that tells apart what it caused.
    """
    return str(uuid5(_NAMESPACE, "\x1f".join((cause, *what))))
