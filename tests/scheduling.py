"""Which worker runs which test: each test goes to whoever is free, those that share a system to the same one."""

from xdist.scheduler import LoadScopeScheduling

STORY = {f"tests/system/test_{what}.py" for what in ("hostile_input", "loop", "restarts", "trace_edges")}
"""They look at one system after its story, which would be played again for each worker."""
FUZZED = {"tests/system/test_fuzz.py"}


class Sharing(LoadScopeScheduling):
    """What shares a system comes first, then the rest in the order in which it was collected."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((min(files) for files in (STORY, FUZZED) if file in files), nodeid)
