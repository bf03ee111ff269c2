"""OpenAI's own package at Darkroom's gateway: models, images as URLs and as Base64, a stream with partial images, an edit,
and its errors. Prints what it saw as JSON.
"""

import argparse
import base64
import hashlib
import io
import json
import struct
import urllib.request
import zlib

import openai


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def png(width: int, height: int, rgba: bytes) -> bytes:
    """A picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + rgba * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = openai.OpenAI(base_url=parser.parse_args().base_url, api_key="unused", max_retries=0)
    ours = {"seed": 7, "num_inference_steps": 8, "guidance_scale": 5.0}
    wanted = {"prompt": "a red circle on a blue background", "size": "128x128", "extra_body": ours}
    report = {"models": [model.id for model in client.models.list()]}

    answer = client.images.generate(model="shapes", response_format="b64_json", **wanted)
    report["b64_json"] = sha256(base64.b64decode(answer.data[0].b64_json))
    answer = client.images.generate(model="shapes", n=2, **wanted)
    report["urls"] = [sha256(urllib.request.urlopen(image.url).read()) for image in answer.data]

    report["stream"] = []
    for event in client.images.generate(model="shapes", stream=True, partial_images=2, **wanted):
        data = base64.b64decode(event.b64_json)
        report["stream"].append([event.type, sha256(data), data[:2] == b"\xff\xd8"])

    picture = io.BytesIO(png(128, 128, b"\xff\x00\x00\xff"))
    picture.name = "picture.png"
    mask = io.BytesIO(png(128, 128, b"\x00\x00\x00\x00"))
    mask.name = "mask.png"
    answer = client.images.edit(
        model="shapes", image=picture, mask=mask, prompt="a green star", size="128x128", extra_body={"num_inference_steps": 4}
    )
    report["edit"] = urllib.request.urlopen(answer.data[0].url).headers["Content-Type"]

    report["errors"] = []
    for wrong in (
        {"prompt": ""},
        {"prompt": "a ring", "size": "large"},
        {"prompt": "a ring", "size": "129x128"},
        {"prompt": "a ring", "n": 99},
        {"prompt": "a ring", "model": "dall-e-3"},
    ):
        try:
            client.images.generate(**wrong)
        except openai.APIStatusError as error:
            report["errors"].append([type(error).__name__, error.status_code, error.code, error.param])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
