"""ClientApps for the tests of the worker: what an installed app may do to its device."""

from __future__ import annotations

import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.check import Invalid

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    what = message.content.config_records["config"]["do"]
    count = int(context.state.config_records.get("kept", {}).get("count", 0)) + 1  # type: ignore[arg-type]
    context.state["kept"] = ConfigRecord({"count": count})
    if what == "hang":
        time.sleep(1000)
    if what == "die":
        os._exit(3)
    if what == "eat":
        return Message(RecordDict({"x": ConfigRecord({"raw": bytes(1 << 33)})}), reply_to=message)
    if what == "swell":
        return Message(RecordDict({"x": ConfigRecord({"raw": bytes(1 << 23)})}), reply_to=message)
    if what == "refuse":
        raise Invalid("round 3: no")
    if what == "leak":
        raise ValueError("/home/me/patients.csv has 17 rows")
    said = {
        "count": count,
        "node": context.node_id,
        "run": context.run_id,
        **context.node_config,
        **context.run_config,
    }
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
