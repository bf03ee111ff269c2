#!/usr/bin/env python3
"""Whether check-scrape tells data from none, tried on an exposition made up here: nothing of Darkroom runs.

    infra/test_check_scrape.py
"""

import contextlib
import http.server
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

CHECK = pathlib.Path(__file__).resolve().with_name("check-scrape")
BUCKETS = (0.5, 1, 5, 60)
# (name, labels) of each kind; a histogram's observation is 1 second each.
COUNTERS = (
    ("diffusion_requests_total", 'status="completed",model="m"'),
    ("darkroom_gpu_seconds_total", 'model="m",capacity="spot"'),
    ("darkroom_worker_seconds_total", 'model="m",capacity="spot"'),
    ("darkroom_images_total", 'model="m",capacity="spot"'),
)
GAUGES = (
    ("diffusion_rows_occupied", 'model="m"'),
    ("diffusion_rows_parked", 'model="m"'),
    ("diffusion_queue_size", 'model="m",priority="normal",pool="any"'),
    ("darkroom_workers", 'model="m",capacity="spot",state="ready"'),
    ("darkroom_workers_wanted", 'model="m",capacity="spot"'),
    ("darkroom_backlog_seconds", 'model="m"'),
    ("darkroom_stream_writable", 'stream="DARKROOM_REQ"'),
)
HISTOGRAMS = (
    ("diffusion_generation_duration_seconds", 'model="m",steps="20"'),
    ("diffusion_queue_wait_seconds", 'model="m"'),
    ("diffusion_batch_size", 'model="m"'),
    ("diffusion_step_duration_seconds", 'model="m"'),
    ("diffusion_phase_duration_seconds", 'model="m",phase="denoising"'),
    ("diffusion_estimated_start_error_seconds", 'model="m"'),
    ("http_server_request_duration_seconds", 'http_request_method="GET",http_route="/v1/jobs",http_response_status_code="200"'),
)
GPU = (
    ("gpu_memory_used_bytes", 'gpu_id="0"'),
    ("gpu_memory_total_bytes", 'gpu_id="0"'),
    ("gpu_utilization_percent", 'gpu_id="0"'),
)


def exposition(count, without):
    """What a stack tells that has counted to `count`."""
    lines = []

    def family(name, kind, samples):
        if name not in without:
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(samples)

    for name, labels in COUNTERS:
        family(name, "counter", [f"{name}{{{labels}}} {count}"])
    for name, labels in GAUGES + GPU:
        family(name, "gauge", [f"{name}{{{labels}}} 1"])
    for name, labels in HISTOGRAMS:
        buckets = [f'{name}_bucket{{{labels},le="{bound}"}} {count if bound >= 1 else 0}' for bound in (*BUCKETS, "+Inf") if bound != "+Inf"]
        family(name, "histogram", [*buckets, f'{name}_bucket{{{labels},le="+Inf"}} {count}', f"{name}_sum{{{labels}}} {count}",
                                   f"{name}_count{{{labels}}} {count}"])
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def stack(without=()):
    """Serves an exposition that counts, and yields its address."""
    begin = time.monotonic()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = exposition(1 + int(5 * (time.monotonic() - begin)), without).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "127.0.0.1:%d" % server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def check(*arguments):
    """The finished check."""
    return subprocess.run([sys.executable, str(CHECK), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


class CheckScrape(unittest.TestCase):
    """Each test is one run of the check."""

    def test_a_stack_that_tells_everything_passes(self):
        with stack() as address, tempfile.TemporaryDirectory() as directory:
            targets = pathlib.Path(directory) / "targets.json"
            targets.write_text(json.dumps([{"targets": [address], "labels": {"job": "darkroom-generate"}}]), encoding="utf-8")
            done = check("--targets", str(targets), "--has", "gpu")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"(?m)^ +1  service\.json, 'Queue size', A$")
        self.assertRegex(done.stdout, r"(?m)^ +1  fleet\.json, 'GPU use', A$")
        self.assertRegex(done.stdout, r"(?m)^ +-  service\.json, 'Webhooks given up', A   \(webhooks: ")

    def test_what_is_not_told_is_named_and_nothing_else(self):
        with stack(without=("diffusion_queue_size", "diffusion_batch_size", "gpu_memory_total_bytes")) as address:
            done = check("--target", f"darkroom-generate={address}", "--timeout", "25")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        panels = {line.split("'")[1] for line in done.stderr.splitlines()}
        self.assertEqual(panels, {"Waiting", "Queue size", "Batch size"}, done.stderr)

    def test_who_does_not_answer_is_named(self):
        with stack() as address:
            done = check("--target", f"darkroom-generate={address}", "--target", "darkroom-gateway=127.0.0.1:1", "--timeout", "20")
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("127.0.0.1:1: ", done.stderr)
        self.assertNotIn(address, done.stderr)

    def test_a_target_without_a_job_is_refused(self):
        done = check("--target", "127.0.0.1:9464")
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("JOB=HOST:PORT", done.stderr)


if __name__ == "__main__":
    unittest.main()
