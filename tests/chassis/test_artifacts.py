"""Artifacts: the address is a promise about the bytes."""

import asyncio
from pathlib import Path

import pytest

from meguri_chassis.artifacts import Artifacts, ArtifactsUnavailable, Damaged
from meguri_contracts.errors import NotFound, TemporaryError

MEGABYTE = bytes(range(256)) * 4096


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(f"file://{tmp_path}/artifacts")


def file_of(artifact) -> Path:
    return Path(artifact.uri.removeprefix("file://"))


@pytest.mark.parametrize("data", [b"", b"bytes", MEGABYTE])
async def test_what_was_put_is_got(artifacts, data):
    artifact = await artifacts.put(data)

    assert await artifacts.get(artifact) == data
    assert file_of(artifact).read_bytes() == data
    assert artifact.size == len(data)


async def test_the_same_bytes_have_the_same_address_and_other_bytes_another(artifacts):
    one, again, other = [await artifacts.put(data) for data in (b"1", b"1", b"2")]

    assert one == again
    assert one.digest != other.digest
    assert one.uri != other.uri


async def test_many_that_put_the_same_bytes_at_once_do_not_disturb_each_other(artifacts):
    put = await asyncio.gather(*(artifacts.put(MEGABYTE) for _ in range(8)))

    assert len(set(put)) == 1
    assert await artifacts.get(put[0]) == MEGABYTE
    assert len(list(file_of(put[0]).parent.iterdir())) == 1


async def test_damaged_bytes_are_noticed(artifacts):
    artifact = await artifacts.put(b"bytes")
    file_of(artifact).write_bytes(b"bites")

    with pytest.raises(Damaged, match=f"do not have the digest {artifact.digest}"):
        await artifacts.get(artifact)


async def test_a_missing_artifact_is_not_found(artifacts):
    artifact = await artifacts.put(b"bytes")
    file_of(artifact).unlink()

    with pytest.raises(NotFound, match=artifact.digest):
        await artifacts.get(artifact)


async def test_a_folder_that_takes_no_files_is_a_matter_of_time(artifacts, tmp_path):
    # Root may write everywhere, but nobody below a file.
    (tmp_path / "artifacts/sha256").write_text("in the way")

    with pytest.raises(ArtifactsUnavailable, match="cannot write to file://") as failure:
        await artifacts.put(b"bytes")
    assert isinstance(failure.value, TemporaryError)


async def test_names_in_the_folder_may_have_spaces(tmp_path):
    artifacts = Artifacts(f"file://{tmp_path}/my%20artifacts")

    assert await artifacts.get(await artifacts.put(b"bytes")) == b"bytes"
    assert (tmp_path / "my artifacts").is_dir()
