"""What an operator may turn in the registry."""

from meguri_chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "registry"
