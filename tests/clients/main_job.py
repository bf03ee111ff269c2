"""One job by a plain NATS client: publish a prompt, follow the events, read the image.

Prints one line of JSON: the kinds of the events in their order, and what is known of the image. The exit status is 0 only
if the events came in their order and the image is the one that was announced. It uses nothing of Darkroom but its
subjects and its JSON.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import urllib.parse
import urllib.request

import nats

STEPS = 8
TERMINAL = ["completed", "failed", "cancelled"]
LIFE = ["accepted", "started", "progress", *TERMINAL]


class Wrong(Exception):
    """Something that must hold and does not."""


def require(condition, message):
    if not condition:
        raise Wrong(message)


def read_event(message, tenant, job):
    """The time, the kind and the data of an event, after its envelope was checked."""
    event = json.loads(message.data)
    require(event.get("specversion") == "1.0", f"not a CloudEvent 1.0: {event}")
    for attribute in ("id", "source", "type", "subject", "time", "datacontenttype"):
        require(event.get(attribute), f"no {attribute}: {event}")
    require(event["datacontenttype"] == "application/json", f"datacontenttype: {event}")
    require(event["subject"] == f"{tenant}/{job}", f"another job's event: {event}")
    prefix, _, kind = event["type"].rpartition(".")
    require(prefix == "darkroom.job", f"type: {event['type']}")
    return event["time"], kind, event["data"]


async def follow(client, options, seen):
    """Publishes the request and puts every event into `seen`, until one is terminal."""
    queue = asyncio.Queue()
    job = f"{options.tenant}.{options.job}"
    await client.subscribe(f"darkroom.ev.{job}.>", cb=queue.put)
    await client.subscribe(f"darkroom.prog.{job}", cb=queue.put)
    # The server must know of the subscriptions before anything happens to the job.
    await client.flush()

    request = {"prompt": options.prompt, "seed": options.seed, "num_inference_steps": STEPS}
    acknowledgement = await client.jetstream().publish(
        f"darkroom.req.{options.model}.normal.any.{options.tenant}",
        json.dumps(request).encode(),
        headers={"Nats-Msg-Id": options.job},
    )
    require(acknowledgement.stream == "DARKROOM_REQ", f"stored in {acknowledgement.stream}")
    require(not acknowledgement.duplicate, "the job id is not new")

    is_over = False
    while not (is_over and queue.empty()):
        message = await queue.get()
        time, kind, data = read_event(message, options.tenant, options.job)
        if message.subject.startswith("darkroom.ev."):
            require(message.subject == f"darkroom.ev.{job}.{kind}", f"{kind} on {message.subject}")
        else:
            require(kind == "progress", f"{kind} on {message.subject}")
        seen.append((time, kind, data))
        if kind in TERMINAL:
            is_over = True
            # Each subscription has a task of its own, so that one can be ahead of the other.
            await client.flush()


def in_order(seen):
    """The events as they happened: those of the same millisecond in the order that is expected, if they can be."""
    return sorted(seen, key=lambda event: (event[0], LIFE.index(event[1])))


def check_order(seen):
    kinds = [kind for _, kind, _ in seen]
    without_progress = [kind for kind in kinds if kind != "progress"]
    require(without_progress == ["accepted", "started", "completed"], f"events: {kinds}")
    require("progress" in kinds, "no progress")
    require(kinds[:2] == ["accepted", "started"] and kinds[-1] == "completed", f"events: {kinds}")
    steps = [data["step"] for _, kind, data in seen if kind == "progress"]
    require(steps == sorted(steps), f"progress goes back: {steps}")
    require(all(0 < step <= STEPS for step in steps), f"progress beyond the request: {steps}")


def check_image(options, data):
    require(len(data["images"]) == 1, f"{len(data['images'])} images")
    image = data["images"][0]
    require(image["index"] == 0, f"index {image['index']}")
    require(image["seed"] == options.seed, f"seed {image['seed']}")
    require(image["content_type"] == "image/png", image["content_type"])
    require(image["key"], "no key")
    url = urllib.parse.urlsplit(image["url"])
    require(url.scheme == "file", f"url {image['url']}")
    with open(urllib.request.url2pathname(url.path), "rb") as file:
        content = file.read()
    require(content.startswith(b"\x89PNG\r\n\x1a\n"), "not a PNG")
    require(len(content) == image["size_bytes"], f"{len(content)} bytes instead of {image['size_bytes']}")
    require(hashlib.sha256(content).hexdigest() == image["sha256"], "another sha256")
    return image


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--tenant", default="t")
    parser.add_argument("--job", required=True, metavar="ID")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    options = parser.parse_args()

    seen = []
    report = {"job": options.job}
    client = await nats.connect(options.nats.split(","), name="main_job.py", allow_reconnect=False)
    try:
        await asyncio.wait_for(follow(client, options, seen), options.timeout)
        seen = in_order(seen)
        _, kind, data = seen[-1]
        require(kind == "completed", f"{kind}: {json.dumps(data)}")
        check_order(seen)
        report["image"] = check_image(options, data)
    except asyncio.TimeoutError:
        report["error"] = f"no terminal event within {options.timeout:g} s"
    except (Wrong, KeyError, OSError, ValueError, nats.errors.Error) as error:
        report["error"] = f"{type(error).__name__}: {error}"
    finally:
        await client.close()
    report["events"] = [kind for _, kind, _ in seen]
    print(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
