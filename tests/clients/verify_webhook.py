"""Verifies one webhook as a receiver would, by the standard's own package.

The exit status is 0 only if the package takes the signature. It uses nothing of Darkroom.
"""

import argparse
import base64
import json
import sys

from standardwebhooks.webhooks import Webhook


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secret", required=True)
    parser.add_argument("--headers", required=True, metavar="JSON")
    parser.add_argument("--body", required=True, metavar="BASE64")
    options = parser.parse_args()
    event = Webhook(options.secret).verify(base64.b64decode(options.body), json.loads(options.headers))
    print(json.dumps({"id": event["id"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
