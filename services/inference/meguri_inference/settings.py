"""What an operator may turn in inference."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "inference"
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest body of a request."""
    max_rows: int = Field(default=100_000, gt=0)
    """Most rows of a request."""
    max_waiting: int = Field(default=10_000, gt=0)
    """Most requests that wait for their answers at a time; more are answered with 503 and `Retry-After`."""
    max_model_bytes: int = Field(default=2 * 1024**3, gt=0)
    """About the memory that loaded models may take. Beyond it those asked longest ago make room until they are asked again."""
    sampling: float = Field(default=0.01, ge=0, le=1)
    """Share of the predictions that get a span, up to ten a second. A request that comes with a sampled `traceparent` always
    gets one."""
    linger: float = Field(default=0.1, gt=0)
    """Seconds that a prediction may wait for others before it is published for monitoring."""
    shared_port: bool = False
    """Whether other processes listen on the same port (SO_REUSEPORT): the kernel shares the connections out among them."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """A port of its own where this process gives its metrics: on a shared one nobody knows whose `/metrics` he gets."""
    batch_inputs: str = Field(default_factory=lambda data: (data["var"] / "incoming").absolute().as_uri())
    """Where the rows of a batch may be: URLs separated by commas, file:///…, s3://…; everything below each is allowed.
    All replicas must see the same there."""
    batch_outputs: str = Field(default_factory=lambda data: (data["var"] / "batches").absolute().as_uri())
    """Where the predictions of a batch may be put; likewise."""
    max_compared_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Largest body of a request to compare two versions, held in memory whole."""
