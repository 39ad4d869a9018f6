"""What an operator may turn in every service. `MEGURI_NATS_URL` sets it for all, `MEGURI_INGEST_NATS_URL` for one."""

import os
import socket
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from meguri_contracts.topology import PORTS


class ServiceSettings(BaseSettings):
    """Base of each service's settings; a subclass gives `service` its name."""

    model_config = SettingsConfigDict(env_prefix="MEGURI_", env_ignore_empty=True)

    service: str
    host: str = "127.0.0.1"
    port: int = Field(default_factory=lambda data: PORTS[data["service"]], ge=0, le=65535)
    nats_url: str = "nats://127.0.0.1:4222"
    """One or more addresses, separated by commas."""
    var: Path = Path("var")
    """Where a laptop keeps everything that lives longer than a process."""
    database_url: str = Field(default_factory=lambda data: f"sqlite:///{data['var']}/{data['service']}.db")
    """SQLite or PostgreSQL: `postgresql://user:password@host/name`."""
    data_url: str = Field(default_factory=lambda data: str(data["var"] / "data"))
    """Folder or object-store URL of the Delta tables."""
    artifacts_url: str = Field(default_factory=lambda data: (data["var"] / "artifacts").absolute().as_uri())
    """Object-store URL of the content-addressed artifacts."""
    replica: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    continue_trace_max_age: float = Field(default=60, ge=0)
    """Seconds up to which a reaction goes on in the trace of its cause; later it starts a new, linked one."""
    graceful_timeout: float = Field(default=25, gt=0)
    """Seconds that work in hand gets to finish after SIGTERM."""
    log_level: str = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        own = EnvSettingsSource(settings_cls, env_prefix=f"MEGURI_{_service_of(settings_cls).upper()}_")
        return init_settings, own, env_settings


def _service_of(settings_cls: type[BaseSettings]) -> Any:
    return settings_cls.model_fields["service"].default
