#!/bin/sh
# Jobs over NATS with its own command line, nats 0.4 of github.com/nats-io/natscli: one until its image is there, one that
# is cancelled while it runs. In another terminal, everything as it happens:
#
#   nats sub 'darkroom.ev.default.>' 'darkroom.prog.default.*'
#
#   ./nats-cli.sh [IMAGE.png]
set -eu
export NATS_URL="${NATS_URL:-nats://127.0.0.1:4222}"
tenant=${DARKROOM_TENANT:-default}
image=${1:-image.png}

# submit JOB REQUEST: sent again with its id, it is the same job.
submit() {
    nats pub --jetstream "darkroom.req.shapes.normal.any.$tenant" -H "Nats-Msg-Id:$1" "$2"
}

# event JOB KIND: the event, which may have happened before or happens within two minutes.
event() {
    nats sub --raw --stream DARKROOM_EV --all --count 1 --wait 2m "darkroom.ev.$tenant.$1.$2" | grep "$1/$2"
}

job=circle-$(date +%s)-$$
request='{"prompt": "a red circle on a blue background", "seed": 7}'
submit "$job" "$request"
submit "$job" "$request"
event "$job" started
completed=$(event "$job" completed)
echo "$completed"
# A link to the store: signed where it can sign, a file where the store is a folder, as in local/up.
url=$(printf '%s' "$completed" | sed 's/.*"url":"\([^"]*\)".*/\1/')
curl --silent --show-error --fail --output "$image" "$url"
echo "$image: $(wc -c <"$image") bytes"

job=star-$(date +%s)-$$
submit "$job" '{"prompt": "a green star", "num_inference_steps": 100, "num_images": 8}'
event "$job" started
nats req --raw "darkroom.api.cancel.$tenant" "{\"job\": \"$job\"}"
event "$job" cancelled
