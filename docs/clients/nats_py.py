"""Jobs over NATS: one that is followed to its image, one that is cancelled while it runs.

pip install nats-py==2.16.0
python3 nats_py.py [IMAGE.png]
"""

import asyncio
import json
import os
import sys
import urllib.request
import uuid

import nats

TENANT = os.environ.get("DARKROOM_TENANT", "default")
REQUESTS = f"darkroom.req.shapes.normal.any.{TENANT}"
ENDS = ("completed", "failed", "cancelled")


async def submit(client, job, request):
    """Publishes a request; it is safe once the stream has confirmed it. Sent again with its id, it is the same job."""
    confirmed = await client.jetstream().publish(REQUESTS, json.dumps(request).encode(), headers={"Nats-Msg-Id": job})
    print(f"job {job}:", "known already" if confirmed.duplicate else "submitted")


async def subscribe(client, job):
    """The job's events from now on: kind and data, up to the one that ends it."""
    messages = asyncio.Queue()
    await client.subscribe(f"darkroom.ev.{TENANT}.{job}.>", cb=messages.put)
    await client.subscribe(f"darkroom.prog.{TENANT}.{job}", cb=messages.put)

    async def events():
        kind = None
        while kind not in ENDS:
            event = json.loads((await messages.get()).data)
            kind = event["type"].removeprefix("darkroom.job.")
            yield kind, event["data"]

    return events()


async def draw(client, path):
    job = f"circle-{uuid.uuid4()}"
    events = await subscribe(client, job)
    request = {"prompt": "a red circle on a blue background", "seed": 7}
    await submit(client, job, request)
    await submit(client, job, request)
    async for kind, data in events:
        print(f"progress: step {data['step']} of {data['steps']}" if kind == "progress" else kind)
    if kind != "completed":
        sys.exit(f"{kind}: {json.dumps(data)}")
    # A link to the store: signed where it can sign, a file where the store is a folder, as in local/up.
    with urllib.request.urlopen(data["images"][0]["url"]) as image, open(path, "wb") as file:
        print(path, file.write(image.read()), "bytes")


async def take_back(client):
    job = f"star-{uuid.uuid4()}"
    events = await subscribe(client, job)
    await submit(client, job, {"prompt": "a green star", "num_inference_steps": 100, "num_images": 8})
    async for kind, _ in events:
        if kind == "started":
            answer = await client.request(f"darkroom.api.cancel.{TENANT}", json.dumps({"job": job}).encode())
            print("asked to cancel:", json.loads(answer.data)["outcome"])
    if kind != "cancelled":
        sys.exit(f"{kind} instead of cancelled")
    print(kind)


async def main():
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(","))
    await draw(client, sys.argv[1] if len(sys.argv) > 1 else "image.png")
    await take_back(client)
    await client.close()


asyncio.run(asyncio.wait_for(main(), timeout=300))
