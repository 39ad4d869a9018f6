"""The Dockerfile, and the stages of it by name."""

import re

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
STAGES = {
    name: text
    for text in DOCKERFILE.split("\nFROM ")[1:]
    for name in re.findall(r"^\S+ AS (\S+)", text.splitlines()[0])
}
