"""Content-addressed files: the same bytes have the same address, so writing twice is writing once."""

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from meguri_contracts.errors import NotFound, PermanentError, TemporaryError
from meguri_contracts.events import Artifact


class Damaged(PermanentError):
    """The bytes at an address are not those that the address promises."""


class ArtifactsUnavailable(TemporaryError):
    """The store does not answer."""


class Artifacts:
    """A folder or bucket of artifacts. `url` is an object-store URL: file:///…, s3://…"""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if url.startswith("file://"):
            Path(unquote(urlparse(url).path)).mkdir(parents=True, exist_ok=True)
        self._store = from_url(self.url)

    async def put(self, data: bytes) -> Artifact:
        """Keep the bytes and return their address. Raises ArtifactsUnavailable."""
        return await asyncio.to_thread(self._put, data)

    async def get(self, artifact: Artifact) -> bytes:
        """Return the bytes, checked against the digest. Raises NotFound, Damaged, ArtifactsUnavailable."""
        return await asyncio.to_thread(self._get, artifact)

    def _put(self, data: bytes) -> Artifact:
        digest = hashlib.sha256(data).hexdigest()
        path = _path(digest)
        try:
            obstore.put(self._store, path, data)
        except (BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"cannot write to {self.url}: {error}") from error
        return Artifact(uri=f"{self.url}/{path}", digest=digest, size=len(data))

    def _get(self, artifact: Artifact) -> bytes:
        try:
            data = bytes(obstore.get(self._store, _path(artifact.digest)).bytes())
        except FileNotFoundError as error:
            raise NotFound(f"artifact {artifact.digest} is not in {self.url}") from error
        except (BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"cannot read from {self.url}: {error}") from error
        if hashlib.sha256(data).hexdigest() != artifact.digest:
            raise Damaged(f"the bytes at {artifact.uri} do not have the digest {artifact.digest}")
        return data


def _path(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"
