"""compose.yaml, the Dockerfile and the folders say the same; the real engine is asked where there is one."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from meguri_contracts.topology import PORTS
from tests.house.stages import DOCKERFILE, STAGES

ROOT = Path(__file__).parent.parent.parent
FILES = ["compose.yaml", "infra/compose.ports.yaml"]
COMPOSE, WITH_PORTS = (yaml.safe_load((ROOT / file).read_text())["services"] for file in FILES)

SERVICES = {folder.parent.name for folder in ROOT.glob("services/*/pyproject.toml")}
INFRASTRUCTURE = {"nats", "postgres", "jaeger"}
JOBS = {"databases", "provision", "meguri"}


def test_every_service_runs_as_a_container_and_nobody_else_but_infrastructure_and_jobs():
    assert set(COMPOSE) == SERVICES | INFRASTRUCTURE | JOBS


def test_everything_built_names_a_stage_of_the_dockerfile():
    assert {built["build"]["target"] for built in COMPOSE.values() if "build" in built} == SERVICES | {"cli"}
    assert SERVICES | {"cli"} <= set(STAGES)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_an_image_holds_and_starts_its_own_service(service: str):
    assert COMPOSE[service]["build"]["target"] == service
    assert COMPOSE[service]["image"] == f"meguri-{service}"
    package = tomllib.loads((ROOT / f"services/{service}/pyproject.toml").read_text())["project"]["name"]
    assert set(re.findall(r"--package (\S+)", STAGES[f"build-{service}"])) == {package}
    assert f"COPY --from=build-{service} " in STAGES[service]
    assert f'CMD ["python", "-m", "meguri_{service}"]' in STAGES[service]
    assert f"ENV MEGURI_PORT={PORTS[service]}\n" in STAGES[service]


def test_every_member_of_the_workspace_gets_to_the_builder():
    # The lock is checked against all of them, whichever image is built.
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    members = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]

    assert not [member for member in members if not any(f"{member}/".startswith(f"{path}/") for path in sent)]


def test_operators_plug_ins_get_into_the_image_of_monitoring():
    assert COMPOSE["monitoring"]["build"]["args"] == {"PLUGINS": "${MEGURI_PLUGINS:-}"}


@pytest.mark.parametrize("service", ["monitoring", "training"])
def test_who_has_processes_of_its_own_has_somebody_to_bury_them(service: str):
    assert COMPOSE[service]["init"] is True


def test_what_can_be_scaled_has_neither_published_ports_nor_a_name_of_its_own():
    taken = {service: {"ports", "container_name"} & set(COMPOSE[service]) for service in SERVICES}

    assert not any(taken.values()), taken


def test_the_file_of_ports_publishes_every_service_on_this_machine_only():
    assert {service: ports_of(WITH_PORTS[service]) for service in WITH_PORTS} == {
        service: [f"127.0.0.1:{PORTS[service]}:{PORTS[service]}"] for service in SERVICES
    }
    assert all(port.startswith("127.0.0.1:") for service in COMPOSE.values() for port in ports_of(service))


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_may_write_to_its_volumes_and_tmp_only_and_comes_back(service: str):
    running = COMPOSE[service]

    assert (running["read_only"], running["tmpfs"], running["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert running["restart"] == "unless-stopped"
    assert "user" not in running, "the image says who it runs as"


def test_images_run_as_a_numeric_user_and_are_asked_whether_they_are_ready():
    # Kubernetes cannot tell whether a name is root's.
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", STAGES["runtime"], re.MULTILINE)
    assert STAGES["service"].startswith("runtime ")
    assert '"meguri_chassis.health"' in STAGES["service"]
    assert all(STAGES[service].startswith("service ") for service in SERVICES)


def test_every_service_with_tables_has_a_database_of_its_own_that_is_created():
    with_tables = {folder.parent.parent.name for folder in ROOT.glob("services/*/*/migrations")}
    addresses = {service: COMPOSE[service]["environment"].get("MEGURI_DATABASE_URL") for service in SERVICES}
    created = re.search(r"for name in ([a-z ]+);", COMPOSE["databases"]["command"][-1])

    assert created
    assert set(created[1].split()) == with_tables
    assert {service for service, url in addresses.items() if url} == with_tables
    assert all(str(addresses[service]).endswith(f"@postgres/{service}") for service in with_tables)


def test_the_command_line_knows_every_service():
    urls = {name: url for name, url in COMPOSE["meguri"]["environment"].items() if name.endswith("_URL")}
    del urls["MEGURI_NATS_URL"]

    assert urls == {f"MEGURI_{service.upper()}_URL": f"http://{service}:{PORTS[service]}" for service in SERVICES}


def test_everything_waits_until_what_it_needs_at_its_start_is_there():
    for service in SERVICES:
        waits_for = COMPOSE[service]["depends_on"]
        assert {name: wait["condition"] for name, wait in waits_for.items()} == {
            "nats": "service_healthy",
            "postgres": "service_healthy",
            "databases": "service_completed_successfully",
            "provision": "service_completed_successfully",
            "jaeger": "service_started",
        }


def test_the_build_uses_the_uv_of_the_makefile():
    pinned = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert pinned
    assert re.findall(r"\buv==(\S+)", DOCKERFILE) == [pinned[1]]


@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_compose_itself_accepts_the_files(files: list[str]):
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("docker compose is not there")
    options = [option for file in files for option in ("-f", file)]

    checked = subprocess.run(
        ["docker", "compose", *options, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def ports_of(service: dict[str, Any]) -> list[str]:
    """The published ports as they are when nothing is set in the environment."""
    return [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", port) for port in service.get("ports", [])]
