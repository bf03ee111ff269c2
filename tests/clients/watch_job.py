"""Follows one job with nats-py to its end. Prints its events, kind by kind."""

import argparse
import asyncio
import json

import nats


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--job", required=True)
    given = parser.parse_args()
    client = await nats.connect(given.nats.split(","))
    events = await client.subscribe(f"darkroom.ev.{given.tenant}.{given.job}.>")
    await client.flush()
    print("watching", flush=True)
    kind = None
    while kind not in ("completed", "failed", "cancelled"):
        kind = json.loads((await events.next_msg(timeout=60)).data)["type"].removeprefix("darkroom.job.")
        print(kind, flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
