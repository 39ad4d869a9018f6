"""The services, and where they are in the repository."""

from pathlib import Path

from tests.conftest import ROOT

SERVICES = sorted(path.name for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists())


def package(service: str) -> Path:
    return ROOT / f"services/{service}/meguri_{service}"
