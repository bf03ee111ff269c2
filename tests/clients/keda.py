"""KEDA and Kubernetes for one ScaledJob: asks an external scaler over gRPC, and starts the workers that are missing.

As KEDA does with the strategy `default`, it starts as many as the metric divided by its target says, less those that run;
workers end by themselves. Prints a line of JSON whenever the numbers change, and one for every change of the pushed
`IsActive`. Ends with status 0 once there was work, nothing is wanted and nothing runs any more. It knows the protocol from
the file that describes it, and nothing else of Darkroom.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
from grpc_tools import protoc

POLL_S = 0.25
SAYING = threading.Lock()


def stubs(protocol):
    """The client's half of the protocol, made here and now."""
    directory = tempfile.mkdtemp()
    code = protoc.main(
        ["protoc", f"-I{protocol.parent}", f"--python_out={directory}", f"--grpc_python_out={directory}", str(protocol)]
    )
    if code != 0:
        raise SystemExit(f"{protocol} cannot be compiled")
    sys.path.insert(0, directory)
    import externalscaler_pb2
    import externalscaler_pb2_grpc

    return externalscaler_pb2, externalscaler_pb2_grpc


def say(**fields):
    # Threads speak at once: `print` would write the end of the line by itself.
    with SAYING:
        print(json.dumps(fields), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("protocol", type=Path)
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--once", action="store_true", help="ask each call once and print the answers")
    parser.add_argument("--run", nargs=argparse.REMAINDER, default=[], help="the command of a worker")
    arguments = parser.parse_args()
    messages, services = stubs(arguments.protocol)
    channel = grpc.insecure_channel(arguments.address)
    grpc.channel_ready_future(channel).result(timeout=30)
    scaler = services.ExternalScalerStub(channel)
    metadata = dict(entry.split("=", 1) for entry in arguments.metadata)
    scaled = messages.ScaledObjectRef(name="generate", namespace="darkroom", scalerMetadata=metadata)

    try:
        target = scaler.GetMetricSpec(scaled).metricSpecs[0]
    except grpc.RpcError as error:
        say(code=error.code().name, details=error.details())
        return 1

    def metric():
        request = messages.GetMetricsRequest(scaledObjectRef=scaled, metricName=target.metricName)
        return scaler.GetMetrics(request).metricValues[0].metricValueFloat

    if arguments.once:
        try:
            say(metric=metric(), target=target.targetSizeFloat, active=scaler.IsActive(scaled).result)
        except grpc.RpcError as error:
            say(code=error.code().name, details=error.details())
            return 1
        return 0

    def follow():
        for answer in scaler.StreamIsActive(scaled):
            say(pushed=answer.result)

    threading.Thread(target=follow, daemon=True).start()
    running, told, was_busy = [], None, False
    while True:
        for worker in [worker for worker in running if worker.poll() is not None]:
            running.remove(worker)
            say(exit=worker.returncode)
        active = scaler.IsActive(scaled).result
        wanted = math.ceil(metric() / target.targetSizeFloat) if active else 0
        for _ in range(wanted - len(running)):
            running.append(subprocess.Popen(arguments.run, stdout=subprocess.DEVNULL))
        if (wanted, len(running)) != told:
            told = (wanted, len(running))
            say(wanted=wanted, running=len(running))
        was_busy = was_busy or wanted > 0
        if was_busy and wanted == 0 and not running:
            return 0
        time.sleep(POLL_S)


sys.exit(main())
