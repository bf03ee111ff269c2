"""Submits a job and is told of its end by a webhook, whose signature is verified.

pip install standardwebhooks==1.1.0
DARKROOM_WEBHOOK_SECRET=$(darkroom webhooks secret default) python3 webhook_receiver.py [IMAGE.png]
"""

import http.server
import json
import os
import sys
import urllib.request

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

DARKROOM = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8080")
WEBHOOK = Webhook(os.environ["DARKROOM_WEBHOOK_SECRET"])
ENDS = ("completed", "failed", "cancelled")
seen = {}


def ask(path, request=None):
    """What the gateway answers."""
    body = None if request is None else json.dumps(request).encode()
    question = urllib.request.Request(DARKROOM + path, body, {"Content-Type": "application/json"})
    # The gateway of local/up wants no key. Where it sends to a store, that link is signed.
    if key := os.environ.get("DARKROOM_API_KEY"):
        question.add_unredirected_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(question) as answer:
        return answer.read()


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            event = WEBHOOK.verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            print("refused:", error)
            return self.answer(401)
        # The same event may come more than once, under the same id.
        if self.headers["webhook-id"] not in seen:
            seen[self.headers["webhook-id"]] = event
            print("told:", event["type"], event["subject"])
        # Whatever is not 2xx is sent again later.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


# Darkroom sends to this machine only where it was allowed to; local/up allows it.
server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
server.timeout, server.handle_timeout = 300, lambda: sys.exit("nothing was told within five minutes")
request = {
    "prompt": "a red circle on a blue background",
    "seed": 7,
    "webhook": {"url": f"http://127.0.0.1:{server.server_port}/darkroom", "events": ["started", *ENDS]},
}
job = json.loads(ask("/v1/jobs", request))["id"]
print("job", job)

ended = None
while not ended:
    server.handle_request()
    of_job = [event for event in seen.values() if event["subject"].endswith(f"/{job}")]
    ended = next((event for event in of_job if event["type"].removeprefix("darkroom.job.") in ENDS), None)
if ended["type"] != "darkroom.job.completed":
    sys.exit(json.dumps(ended["data"]))
path = sys.argv[1] if len(sys.argv) > 1 else "image.png"
with open(path, "wb") as file:
    print(path, file.write(ask(f"/v1/jobs/{job}/images/0")), "bytes")
