"""What an operator may turn in monitoring. What a model's owner may turn stands in its spec, under `monitor` and `notify`."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "monitoring"
    notice_patience: float = Field(default=3600, ge=0)
    """Seconds over which a message about an episode is tried again before it is given up, said so and parked."""
    report_url: str = Field(
        default_factory=lambda data: f"http://{data['host']}:{data['port']}/episodes/{{episode}}/report"
    )
    """Where readers of a message find the report of an `{episode}`."""
    trace_url: str = ""
    """Where they find a `{trace}`, such as http://jaeger:16686/trace/{trace}; without one a command is named."""
    evaluator_seconds: float = Field(default=60, gt=0)
    """What an evaluator may take for what it is given at once; then it is ended, and tried with less."""
    evaluator_memory: int = Field(default=2 * 1024**3, ge=256 * 1024**2)
    """Bytes that the process of an evaluator may use. Each replica has one for each evaluator that has work."""
