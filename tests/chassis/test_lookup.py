from meguri_chassis.lookup import Lookup
from meguri_contracts.events import BatchFailed, BatchRequested
from tests.services import name, wire


async def test_what_was_said_about_a_key_is_found_in_the_log_and_what_cannot_be_read_passed_over(broker):
    model, other = name("m"), name("m")
    async with wire(broker) as beside:
        lookup = Lookup(lambda: beside.js)
        assert await lookup.head(model) == 0
        first = await beside.say(BatchFailed(model=model, batch="a", reason="r"))
        await beside.publish("batch-failed", model, b"no JSON")
        await beside.say(BatchFailed(model=other, batch="b", reason="r"))
        third = await beside.say(BatchFailed(model=model, batch="c", reason="r"), source="ünicode")
        last = await beside.say(BatchRequested(model=model, batch="d", input="i", output="o", actor="a"))
        said = [(sequence, event.batch) async for sequence, event in lookup.said(BatchFailed, model)]
        after = [event.batch async for _, event in lookup.said(BatchFailed, model, after=first)]

        assert said == [(first, "a"), (third, "c")]
        assert after == ["c"]
        assert await lookup.head(model) == last
