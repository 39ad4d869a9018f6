"""What an operator may turn in ingest."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "ingest"
    roots: str = Field(default_factory=lambda data: f"file://{(data['var'] / 'incoming').absolute()}")
    """Where a `uri` may point to: URLs separated by commas, file:///…, s3://…; everything below each is allowed."""
    max_file_bytes: int = Field(default=512 * 1024 * 1024, gt=0)
    """Largest file that is read or taken as an upload; it is held in memory."""
    arrivals_in_hand: int = Field(default=64, gt=0)
    """Arrivals that a replica works on at a time; those of one dataset that wait together go into one commit."""
