#!/bin/sh
# Jobs over HTTP with curl: one that is followed, one that is waited for, one that is cancelled.
#
#   ./curl.sh [IMAGE.png]
set -eu
url=${DARKROOM_URL:-http://127.0.0.1:8080}
image=${1:-image.png}

ask() {
    # The key, if there is one: the gateway of local/up wants none.
    curl --silent --show-error --fail-with-body ${DARKROOM_API_KEY:+--oauth2-bearer "$DARKROOM_API_KEY"} "$@"
}

# submit BODY [OPTION OF curl]…: the answer, which begins with the job's id.
submit() {
    body=$1
    shift
    ask "$url/v1/jobs" -H 'Content-Type: application/json' --data "$body" "$@"
}

# The value of a string in a JSON answer; fails, and shows the answer, where there is none. With jq: jq -er ".$1"
field() {
    answer=$(cat)
    value=${answer#*"\"$1\":\""}
    [ "$value" != "$answer" ] || { printf '%s\n' "$answer" >&2 && return 1; }
    printf '%s\n' "${value%%\"*}"
}

# A request that is sent again with its key is the same job, so a connection that breaks here loses nothing.
circle='{"prompt": "a red circle on a blue background", "seed": 7}'
key=circle-$(date +%s)-$$
job=$(submit "$circle" -H "Idempotency-Key: $key" | field id)
again=$(submit "$circle" -H "Idempotency-Key: $key" | field id)
echo "job $job"
[ "$again" = "$job" ]

# Server-sent events, as they happen, until the one that ends the job.
ask --no-buffer "$url/v1/jobs/$job/events" | grep --line-buffered '^event: '
ask --location "$url/v1/jobs/$job/images/0" --output "$image"
echo "$image: $(wc -c <"$image") bytes"

# Without events: the answer comes when the job has ended, or after so many seconds.
status=$(submit '{"prompt": "a blue ring", "num_inference_steps": 4}' -H 'Prefer: wait=60' | field status)
echo "waited: $status"
[ "$status" = completed ]

job=$(submit '{"prompt": "a green star", "num_inference_steps": 100, "num_images": 8}' | field id)
status=$(ask -X DELETE "$url/v1/jobs/$job" | field status)
echo "taken back: $status"
[ "$status" = cancelled ]
