"""Replicate's own package at Darkroom's gateway: run, create, get, cancel, list, and its errors. Prints what it saw as JSON."""

import argparse
import hashlib
import json
import urllib.request

import replicate
from replicate.exceptions import ReplicateError


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

    long = client.predictions.create(version="shapes", input={**wanted, "num_inference_steps": 100, "num_outputs": 8})
    long.cancel()
    long.reload()
    report["cancelled"] = long.status
    report["listed"] = [found.status for found in client.predictions.list().results]

    report["errors"] = []
    for version, given in (("shapes", {"prompt": "a ring", "width": 129}), ("sdxl", {"prompt": "a ring"})):
        try:
            client.predictions.create(version=version, input=given)
        except ReplicateError as error:
            report["errors"].append([error.status, error.detail])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
