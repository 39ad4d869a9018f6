"""What an operator may turn in inference."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "inference"
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest body of a request."""
    max_rows: int = Field(default=100_000, gt=0)
    """Most rows of a request."""
    sampling: float = Field(default=0.01, ge=0, le=1)
    """Share of the predictions that get a span. A request that comes with a sampled `traceparent` always gets one."""
    linger: float = Field(default=0.1, gt=0)
    """Seconds that a prediction may wait for others before it is published for monitoring."""
