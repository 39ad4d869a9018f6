"""Folders, lists and files agree; whoever adds a service is told here what was forgotten."""

import ast
import configparser
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from meguri_chassis.settings import ServiceSettings
from meguri_contracts.topology import CONSUMERS, LOG, PORTS
from tests.conftest import ROOT
from tests.house.folders import SERVICES, package

PACKAGES = sorted(path for path in [*ROOT.glob("services/*/meguri_*"), *ROOT.glob("shared/*/meguri*")] if path.is_dir())
of_every_service = pytest.mark.parametrize("service", SERVICES)
of_every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def test_the_loop_is_there():
    assert {"ingest", "training", "registry", "inference", "monitoring"} <= set(SERVICES)
    assert {path.name for path in PACKAGES} >= {"meguri", "meguri_chassis", "meguri_contracts"}


@of_every_service
def test_a_service_has_the_files_that_one_looks_for(service):
    expected = {"__init__.py", "__main__.py", "app.py", "settings.py", "api.py", "py.typed"}
    found = {path.name for path in package(service).iterdir()}

    assert expected <= found
    if "migrations" in found:
        assert {"store.py", "projection.py", "handlers.py"} <= found


@of_every_service
def test_a_service_has_a_port_and_is_called_after_its_folder(service):
    settings = import_module(f"meguri_{service}.settings").Settings

    assert service in PORTS
    assert issubclass(settings, ServiceSettings)
    assert settings.model_fields["service"].default == service


@of_every_service
def test_a_service_says_in_a_sentence_what_it_does(service):
    first = (ast.get_docstring(ast.parse((package(service) / "app.py").read_text())) or "").partition("\n")[0]

    assert first.lower().removeprefix("the ").startswith(f"{service}:")


@of_every_service
def test_a_service_hears_each_kind_of_its_consumers_with_one_handler(service, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGURI_VAR", str(tmp_path))
    built = import_module(f"meguri_{service}.app").build()
    heard = {hearing.consumer.name: hearing for hearing in built._hearings}

    assert set(heard) == {
        consumer.name for consumer in CONSUMERS if consumer.name.startswith(f"{service}-") and consumer.stream == LOG
    }
    for hearing in heard.values():
        kinds = [event for handler in hearing.handlers for event in handler.hears]
        assert sorted(kinds, key=str) == sorted(hearing.consumer.hears, key=str)
    if built.database:
        built.database.close()


@of_every_package
def test_a_distribution_is_a_member_of_the_workspace_and_called_like_its_package(package):
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    own = tomllib.loads((package.parent / "pyproject.toml").read_text())
    members = [path for pattern in root["tool"]["uv"]["workspace"]["members"] for path in ROOT.glob(pattern)]
    locked = {entry["name"] for entry in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}

    assert package.parent in members
    assert own["project"]["name"] == package.name.replace("_", "-")
    assert own["project"]["name"] in locked
    assert own["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [package.name]


@of_every_package
def test_a_distribution_depends_on_what_it_imports_of_meguri(package):
    own = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]
    stated = {requirement.partition("[")[0] for requirement in own.get("dependencies", [])}
    used = {name.replace("_", "-") for name in imported(package) if name.startswith("meguri")} - {own["name"]}

    assert used <= stated


@of_every_package
def test_the_import_linter_looks_at_a_distribution(package):
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")

    assert package.name in rules["importlinter"]["root_packages"].split()
    if package.parent.parent.name == "services":
        assert package.name in rules["importlinter:contract:services"]["modules"].split()
        assert package.name in rules["importlinter:contract:layers"]["containers"].split()
        assert package.name in rules["importlinter:contract:chassis"]["forbidden_modules"].split()


def test_contracts_import_pydantic_only():
    assert imported(ROOT / "shared/contracts/meguri_contracts") == {"meguri_contracts", "pydantic"}


@of_every_service
def test_a_service_is_started_by_compose(service):
    if not (ROOT / "compose.yaml").exists():
        pytest.skip("there is no compose.yaml")
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    by_cli = compose["services"]["meguri"]["environment"]

    assert compose["services"][service]["build"]["target"] == service
    assert by_cli[f"MEGURI_{service.upper()}_URL"] == f"http://{service}:{PORTS[service]}"
    assert f" AS {service}\n" in (ROOT / "infra/Dockerfile").read_text()


def imported(package: Path) -> set[str]:
    """Top-level names of everything that a package imports, the standard library aside."""
    names = {name.partition(".")[0] for path in package.rglob("*.py") for name in imports(path)}
    return names - set(sys.stdlib_module_names)


def imports(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_tests_share_is_in_no_test_file():
    files = (ROOT / "tests").rglob("*.py")

    assert [f"{path.name}: {name}" for path in files for name in imports(path) if ".test_" in name] == []


def test_a_backup_takes_no_longer_than_tables_keep_the_files_that_it_copies():
    copying, writing = (import_module(name) for name in ("meguri.stores", "meguri_monitoring.predictions.writing"))

    assert copying.UNUSED_HOURS <= writing.UNUSED_HOURS
