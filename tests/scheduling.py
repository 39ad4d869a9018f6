"""Which worker runs which test: each test goes to whoever is free, those that share a system to the same one."""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

STORY = {f"tests/system/test_{what}.py" for what in ("hostile_input", "loop", "restarts", "trace_edges")}
"""They look at one system after its story, which would be played again for each worker."""
FUZZED = {"tests/system/test_fuzz.py"}


class Sharing(LoadScopeScheduling):
    """What shares a system comes first, then the rest in the order in which it was collected."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((min(files) for files in (STORY, FUZZED) if file in files), nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Give the tests of a worker that crashed to others, all but the one it crashed in, which has failed."""
        units = self.assigned_work[node]
        left = [(unit, test) for unit in units.values() for test, done in unit.items() if not done]
        for unit, test in left[:1]:
            unit[test] = True
        # Not those that are done: whoever were given one would have nothing to report, and would never be given another.
        self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
        super().remove_node(node)
        return left[0][1] if left else None

    def _reschedule(self, node: WorkerController) -> None:
        # Whoever came in the place of one that crashed may not have collected yet.
        if node in self.registered_collections:
            super()._reschedule(node)
