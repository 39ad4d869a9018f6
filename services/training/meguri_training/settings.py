"""What an operator may turn in training."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "training"
    fit_tries: int = Field(default=3, ge=1)
    """How often a fit is begun whose process dies, by lack of memory for example, before the run counts as failed."""
