"""What an operator may turn in ingest."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "ingest"
    roots: str = Field(default_factory=lambda data: (data["var"] / "incoming").absolute().as_uri())
    """Where a `uri` may point to: URLs separated by commas, file:///…, s3://…; everything below each is allowed."""
    max_file_bytes: int = Field(default=512 * 1024 * 1024, gt=0)
    """Largest file that is read or taken as an upload; it is held in memory whole."""
    arrivals_in_hand: int = Field(default=64, gt=0)
    """Arrivals that a replica works on at a time; those of one dataset that wait together go into one commit."""
    memory_bytes: int = Field(default=1024**3, gt=0)
    """Bytes of events and files that a replica has in work at once; as rows they take several times as much. What does not
    fit waits; a single file of up to `max_file_bytes` always gets through alone."""
    max_waiting: int = Field(default=10_000, gt=0)
    """Arrivals that may wait, over all replicas, before whoever sends over HTTP is told to wait too (429)."""
