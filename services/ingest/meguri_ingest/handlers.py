"""Events in, events out."""

from meguri_chassis.bus import hears
from meguri_chassis.log import EventLog, Message
from meguri_contracts.errors import PermanentError
from meguri_contracts.events import DataArrived, DataRejected
from meguri_contracts.names import derived_id
from meguri_ingest.arrivals import IdTaken, Lanes


class Receiver:
    """Answers every arrival: with a dataset version, or with why there is none."""

    def __init__(self, log: EventLog, lanes: Lanes) -> None:
        self._log = log
        self._lanes = lanes

    @hears(DataArrived)
    async def take(self, event: DataArrived, message: Message) -> None:
        """Put the rows into the next version of their dataset."""
        await self._lanes.take(event, message)

    async def refuse(self, message: Message, error: PermanentError) -> None:
        """Say why an arrival was rejected. One that somebody can put right, or has no receipt, is a dead letter."""
        if isinstance(error, IdTaken) or not _can_be_read(message):
            raise error
        rejected = DataRejected(dataset=message.key, event=message.id, producer=message.source, reason=str(error))
        id_ = derived_id(message.id, rejected.type, message.key)
        await self._log.append(rejected, id=id_, cause=message.id, journey=message.journey, hops=message.hops + 1)


def _can_be_read(message: Message) -> bool:
    try:
        return isinstance(message.event, DataArrived)
    except PermanentError:
        return False
