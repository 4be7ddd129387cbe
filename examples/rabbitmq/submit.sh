#!/bin/sh
# Publishes a command with rabbitmqadmin, the command line of RabbitMQ's management plugin, and prints the next event.
#
#   RABBITMQ_API_URL=http://127.0.0.1:15672 RABBITMQ_USER=guest RABBITMQ_PASSWORD=guest RABBITMQ_VHOST=/ \
#     sh submit.sh "A lighthouse at dusk"
#
# For people and one-time jobs: rabbitmqadmin publishes without confirms. Needs Python 3, and rabbitmqadmin, which the
# management plugin serves. The descriptions must not contain quotation marks or backslashes.
set -eu
url=${RABBITMQ_API_URL:-http://127.0.0.1:15672}
vhost=${RABBITMQ_VHOST:-/}
queue=example.$$
authority=${url#*://}

[ -f rabbitmqadmin ] || curl --silent --show-error --fail --output rabbitmqadmin "$url/cli/rabbitmqadmin"

admin() {
  python3 rabbitmqadmin --host="${authority%:*}" --port="${authority##*:}" --vhost="$vhost" \
    --username="${RABBITMQ_USER:-guest}" --password="${RABBITMQ_PASSWORD:-guest}" "$@"
}

# Terminal events only. The queue is deleted at the end: it would collect the events of all jobs, and each of them would
# count as received.
admin declare queue name="$queue" durable=true
trap 'admin delete queue name="$queue"' EXIT
admin declare binding source=assets.events destination="$queue" routing_key=assets.generation.completed
admin declare binding source=assets.events destination="$queue" routing_key=assets.generation.failed

job=$(cat /proc/sys/kernel/random/uuid)
descriptions=$(printf '"%s",' "$@")
admin publish exchange=assets.commands routing_key=generate \
  payload="{\"job_id\": \"$job\", \"project_id\": 42, \"image_descriptions\": [${descriptions%,}]}" \
  properties='{"content_type": "application/json", "delivery_mode": 2}'

until admin --format=raw_json get queue="$queue" ackmode=ack_requeue_false count=1 > event.json && grep --quiet "$job" event.json; do
  sleep 1
done
cat event.json
