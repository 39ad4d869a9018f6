"""What is in the way of a start is said before anything is started."""

import pytest

from infra.local.processes import CannotStart, Laptop


@pytest.mark.parametrize("sign", ["%", '"'])
def test_a_folder_whose_name_supervisor_does_not_take_is_refused_with_what_to_do(sign, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGURI_NATS_URL", "")
    monkeypatch.setenv("MEGURI_VAR", "")
    folder = tmp_path / f"50{sign} off"

    with (
        pytest.raises(CannotStart, match=f"takes no {sign} .* as in .*off: name another with MEGURI_VAR"),
        Laptop(folder),
    ):
        pass

    assert not folder.exists()
