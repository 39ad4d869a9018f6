"""What an operator may turn in monitoring. What a model's owner may turn stands in its spec, under `monitor`."""

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "monitoring"
