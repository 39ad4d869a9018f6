"""What an operator may turn in training."""

from pydantic import Field

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "training"
    max_hops: int = Field(default=16, ge=1)
    """Reactions that may lie between what makes a run due and what came from outside, before it is taken for a loop. A
    run whose verdict asks for the next one adds three, one whose rollout brings new data adds five."""
    fit_tries: int = Field(default=3, ge=1)
    """How often a fit is begun whose process dies, by lack of memory for example, before the run counts as failed."""
