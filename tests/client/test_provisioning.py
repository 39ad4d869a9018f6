from dataclasses import replace

from nats.js.api import DeliverPolicy

from meguri import provisioning
from meguri.provisioning import consumer_config, provision
from meguri_contracts.topology import CONSUMERS, LOG, REGISTRY_JUDGE
from tests.conftest import Broker
from tests.services import wire


async def test_a_consumer_that_began_later_can_be_changed_and_still_begins_there(broker: Broker, monkeypatch):
    async with wire(broker) as beside:
        await beside.js.delete_consumer(LOG, REGISTRY_JUDGE.name)
        config = consumer_config(REGISTRY_JUDGE)
        config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, 7
        await beside.js.add_consumer(LOG, config)
        changed = [replace(one, ack_wait=77) if one is REGISTRY_JUDGE else one for one in CONSUMERS]
        monkeypatch.setattr(provisioning, "CONSUMERS", changed)

        done = {one.name: one.done for one in await provision(broker.url)}

        now = (await beside.js.consumer_info(LOG, REGISTRY_JUDGE.name)).config
        assert done[REGISTRY_JUDGE.name] == "updated"
        assert (now.ack_wait, now.opt_start_seq) == (77, 7)
