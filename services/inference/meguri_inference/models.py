"""The table of what is served: one version per model, replaced in one step."""

from meguri_contracts.errors import NotFound
from meguri_inference.predicting import LoadedModel


class NotServed(NotFound):
    def __init__(self, name: str, served: tuple[str, ...]) -> None:
        super().__init__(f"no model {name!r} is served here; served are: {', '.join(served) or 'none yet'}")


class VersionNotServed(NotFound):
    def __init__(self, name: str, version: str, served: int) -> None:
        super().__init__(f"version {version} of model {name!r} is not served here; version {served} is")


class Models:
    """Name to loaded model. Requests in hand finish on the version that they began with."""

    def __init__(self) -> None:
        self._served: dict[str, LoadedModel] = {}

    def swap(self, name: str, loaded: LoadedModel) -> LoadedModel | None:
        """Serve `loaded` from now on; return what served before."""
        before = self._served.get(name)
        self._served[name] = loaded
        return before

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """Return who answers for `name`. Raises NotServed, or VersionNotServed when `version` is not the one."""
        loaded = self._served.get(name)
        if loaded is None:
            raise NotServed(name, self.names)
        if version is not None and version != str(loaded.version):
            raise VersionNotServed(name, version, loaded.version)
        return loaded

    def ready(self, name: str, version: str | None = None) -> bool:
        """Return whether `get` would find somebody."""
        loaded = self._served.get(name)
        return loaded is not None and version in (None, str(loaded.version))

    @property
    def names(self) -> tuple[str, ...]:
        """The models served, in alphabetical order."""
        return tuple(sorted(self._served))
