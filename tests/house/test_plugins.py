"""Plug-ins get into the image of monitoring by the very command of the Dockerfile, beside what is locked, not in its place."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.house.stages import STAGES

UV = ROOT / ".tools/uv/bin"
COMMAND = (
    STAGES["build-monitoring"]
    .partition('ARG PLUGINS=""')[2]
    .partition("RUN --mount=type=cache,target=/root/.cache/uv ")[2]
)
LOCKED = "meguri-test-locked"


class Image:
    """An environment that has what is locked, and wheels of other versions of that and of plug-ins."""

    def __init__(self, folder: Path) -> None:
        self._wheels = folder / "wheels"
        self._wheels.mkdir()
        self._cwd = folder
        # Whatever is not among the wheels is not there: nothing is asked of an index.
        self._env = os.environ | {
            "PATH": f"{UV}:{os.environ['PATH']}",
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": str(self._wheels),
            "UV_CACHE_DIR": str(folder / "cache"),
            "UV_PROJECT_ENVIRONMENT": str(folder / "environment"),
            "TMPDIR": str(folder),
        }
        for version in ("1.0", "2.0", "3.0"):
            self.wheel(LOCKED, version)
        self._sh(f"uv venv --python {sys.executable} $UV_PROJECT_ENVIRONMENT")
        self._sh(f"uv pip install --python $UV_PROJECT_ENVIRONMENT {LOCKED}==2.0")

    def wheel(self, name: str, version: str, *requirements: str) -> None:
        module = name.replace("-", "_")
        about = f"{module}-{version}.dist-info"
        required = "".join(f"Requires-Dist: {one}\n" for one in requirements)
        with zipfile.ZipFile(self._wheels / f"{module}-{version}-py3-none-any.whl", "w") as file:
            file.writestr(f"{module}.py", "")
            file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
            file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{about}/RECORD", "")

    def build(self, plug_ins: str) -> None:
        """Do the step of the Dockerfile. Raises CalledProcessError, with what was said."""
        self._sh(COMMAND, PLUGINS=plug_ins)

    def installed(self) -> set[str]:
        return set(self._sh("uv pip freeze --python $UV_PROJECT_ENVIRONMENT").split())

    def _sh(self, command: str, **env: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self._cwd, env=self._env | env, capture_output=True, text=True, check=True
        )
        return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_plug_ins_and_what_they_need_come_beside_what_is_locked(image):
    image.wheel("meguri-test-shop", "1.2", f"{LOCKED}>=1", "meguri-test-money")
    image.wheel("meguri-test-money", "1.0")
    image.wheel("meguri-test-other", "1.0")

    image.build("meguri-test-shop==1.2 meguri-test-other")

    expected = {"meguri-test-shop==1.2", "meguri-test-money==1.0", "meguri-test-other==1.0"}
    assert image.installed() == {f"{LOCKED}==2.0"} | expected


@pytest.mark.parametrize("needs", [f"{LOCKED}<2", f"{LOCKED}>2"])
def test_a_plug_in_that_needs_what_is_locked_in_another_version_ends_the_build_and_changes_nothing(image, needs):
    image.wheel("meguri-test-shop", "1.2", needs)

    with pytest.raises(subprocess.CalledProcessError) as refused:
        image.build("meguri-test-shop")

    assert f"meguri-test-shop depend on {needs} and {LOCKED}==2.0" in " ".join(refused.value.stderr.split())
    assert image.installed() == {f"{LOCKED}==2.0"}


def test_no_plug_ins_are_no_work(image):
    image.build("")

    assert image.installed() == {f"{LOCKED}==2.0"}
