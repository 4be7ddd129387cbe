#!/bin/sh
# Submits a job by HTTP, shows its events until its end, and downloads a smaller copy of its first image.
#
#   API_URL=http://127.0.0.1:8088 API_TOKEN=… sh submit.sh "A lighthouse at dusk"
#
# Needs curl 7.76 or later. The descriptions must not contain quotation marks or backslashes.
set -eu
api=${API_URL:-http://127.0.0.1:8088}
job=${JOB_ID:-$(cat /proc/sys/kernel/random/uuid)}

call() {
  curl --silent --show-error --fail-with-body --header "Authorization: Bearer ${API_TOKEN:-}" "$@"
}

descriptions=$(printf '"%s",' "$@")
call --request PUT "$api/v1/jobs/$job" --header 'Content-Type: application/json' \
  --data "{\"project_id\": 42, \"image_descriptions\": [${descriptions%,}]}"
echo
# The stream ends with the job. With Last-Event-ID it can be continued after an interruption.
call --no-buffer "$api/v1/jobs/$job/events" | sed -n 's/^event: assets.generation.//p'
call --output image.jpg "$api/v1/jobs/$job/images/1?width=640"
echo "image.jpg is the first image of job $job"
