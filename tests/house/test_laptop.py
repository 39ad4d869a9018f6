"""What is in the way of a start is said before anything is started."""

import re

import pytest

from infra.local.processes import CannotStart, Laptop


@pytest.mark.parametrize("sign", ["%", '"', "#", "?", "[", "\\", ",", "\n"])
def test_a_folder_whose_name_would_be_taken_for_something_else_is_refused_with_what_to_do(sign, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGURI_NATS_URL", "")
    monkeypatch.setenv("MEGURI_VAR", "")
    folder = tmp_path / f"50{sign} off"

    said = rf"(?s)may have no {re.escape(repr(sign))}, as in .*off: name another with MEGURI_VAR"
    with pytest.raises(CannotStart, match=said), Laptop(folder):
        pass

    assert not folder.exists()
