"""Replicate's own package at Darkroom's gateway: run, create, get, cancel, list, webhooks, and its errors. Prints what it saw
as JSON."""

import argparse
import hashlib
import http.server
import json
import threading
import urllib.request

import replicate
from replicate.exceptions import ReplicateError
from replicate.webhook import Webhooks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = replicate.Client(api_token="unused", base_url=parser.parse_args().base_url)
    wanted = {"prompt": "a red circle on a blue background", "width": 128, "height": 128, "seed": 7,
              "num_inference_steps": 8, "guidance_scale": 5.0}
    report = {}

    outputs = client.run("anybody/shapes", input=wanted)
    # The package makes files of what is at https only.
    report["run"] = [hashlib.sha256(urllib.request.urlopen(output).read()).hexdigest() for output in outputs]

    prediction = client.predictions.create(version="shapes", input={**wanted, "num_outputs": 2})
    report["created"] = prediction.status
    prediction.wait()
    report["waited"] = [prediction.status, len(prediction.output), prediction.input["prompt"], prediction.metrics["predict_time"] > 0]

    secret = client.webhooks.default.secret()
    received, told = [], threading.Event()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            Webhooks.validate(headers=dict(self.headers), body=body, secret=secret)
            said = json.loads(body)
            received.append([said["status"], said["output"], said["input"]["prompt"]])
            self.send_response(204)
            self.end_headers()
            if said["status"] == "succeeded":
                told.set()

        def log_message(self, *_):
            pass

    receiver = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    client.predictions.create(version="shapes", input=wanted, webhook=f"http://127.0.0.1:{receiver.server_port}/told",
                              webhook_events_filter=["start", "output", "completed"])
    assert told.wait(60), received
    report["webhooks"] = received

    long = client.predictions.create(version="shapes", input={**wanted, "num_inference_steps": 100, "num_outputs": 8})
    long.cancel()
    long.reload()
    report["cancelled"] = long.status
    report["listed"] = [found.status for found in client.predictions.list().results]

    report["errors"] = []
    for version, given, more in (
        ("shapes", {"prompt": "a ring", "width": 129}, {}),
        ("sdxl", {"prompt": "a ring"}, {}),
        ("shapes", {"prompt": "a ring"}, {"webhook": "https://example.com", "webhook_events_filter": ["end"]}),
    ):
        try:
            client.predictions.create(version=version, input=given, **more)
        except ReplicateError as error:
            report["errors"].append([error.status, error.detail])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
