"""docs/spec.md tells all that a spec can say, and tells it true."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from meguri_contracts.spec import METRICS, TARGET_METRICS, Dataset, ModelSpec
from tests.conftest import ROOT

PAGE = (ROOT / "docs/spec.md").read_text()
WHOLE: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])


def fields(model: type[BaseModel], said: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field with what the page says and the default."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Dataset:
            yield from fields(kind, said[name], f"{path}{name}.")
        else:
            yield (
                f"{path}{name}",
                said[name],
                None if field.is_required() else field.get_default(call_default_factory=True),
            )


def test_the_spec_on_the_page_holds():
    spec = ModelSpec.model_validate(WHOLE)

    assert len(spec.feature_names) == 11


def test_the_page_has_every_field_with_its_default():
    own = {"features", "target", "estimator.params", "gate", "dataset", "model", "task", "estimator.name"}
    for name, said, default in fields(ModelSpec, WHOLE):
        if name not in own:
            plain = default.model_dump() if isinstance(default, BaseModel) else default
            assert (tuple(said) if isinstance(said, list) else said) == plain, name


def test_the_page_has_every_metric():
    for metric in (*(one for of in METRICS.values() for one in of), *TARGET_METRICS):
        assert metric in PAGE
