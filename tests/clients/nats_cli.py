#!/usr/bin/env python3
"""Stands in for NATS' command line `nats`, which no package registry has, where docs/clients/nats-cli.sh is tested.

It knows the commands and options that the script uses, as natscli 0.4 has them, and refuses all others. So a real server sees
what the script publishes and asks; that a later natscli still has those options is not seen.
"""

import argparse
import asyncio
import os

import nats


async def pub(client, options):
    headers = dict(header.split(":", 1) for header in options.header)
    stored = await client.jetstream().publish(options.subject, options.body.encode(), headers=headers)
    print(f"Stored in Stream: {stored.stream} Sequence: {stored.seq}" + " Duplicate: true" * bool(stored.duplicate))


async def req(client, options):
    print((await client.request(options.subject, options.body.encode(), timeout=5)).data.decode())


async def sub(client, options):
    subscription = await client.jetstream().subscribe(options.subject, stream=options.stream, ordered_consumer=True)
    for _ in range(options.count):
        print((await subscription.next_msg(timeout=60 * float(options.wait.removesuffix("m")))).data.decode())


async def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    for run, switches in ((pub, ["--jetstream"]), (req, ["--raw"]), (sub, ["--raw", "--all"])):
        command = commands.add_parser(run.__name__, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("subject")
        for switch in switches:
            command.add_argument(switch, action="store_true", required=True)
        if run is sub:
            command.add_argument("--stream", required=True)
            command.add_argument("--count", required=True, type=int)
            command.add_argument("--wait", required=True)
        else:
            command.add_argument("body")
        if run is pub:
            command.add_argument("-H", dest="header", action="append", default=[])
    options = parser.parse_args()
    client = await nats.connect(os.environ["NATS_URL"])
    await options.run(client, options)
    await client.close()


asyncio.run(main())
