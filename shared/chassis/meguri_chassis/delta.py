"""Delta tables that polars can read wherever they are."""

from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable


class Table(DeltaTable):  # type: ignore[misc]
    """A Delta table whose files have paths where they are files of this machine.

    delta-rs gives them as in a URL, `%20` for a space, and polars takes that for their name.
    """

    def file_uris(self, *filters: Any, **more: Any) -> list[str]:
        """Return where the table's files are: paths, or URLs of objects."""
        return [unquote(uri) if uri.startswith("/") else uri for uri in super().file_uris(*filters, **more)]
