"""Submits a job with pika, and waits for its terminal event.

    pip install --requirement requirements.txt
    python submit_and_wait.py "A lighthouse at dusk"
"""

import json
import os
import sys
import uuid

import pika
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event

job_id = str(uuid.uuid4())
url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()

# Before the command is published, so that no event is missed. A service would use a durable queue with a name.
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "assets.events", "assets.generation.*")

# With a confirm, and as mandatory: an error if the command has not reached the queue of the workers.
channel.confirm_delivery()
command = {"job_id": job_id, "project_id": 42, "image_descriptions": sys.argv[1:]}
properties = pika.BasicProperties(content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent)
channel.basic_publish("assets.commands", "generate", json.dumps(command).encode(), properties, mandatory=True)

seen = set()
for method, properties, body in channel.consume(queue):
    event = from_rabbitmq_event(RabbitMQMessage(properties.headers or {}, properties.content_type, body))
    channel.basic_ack(method.delivery_tag)
    # Events are delivered at least once; their ids tell which ones are known.
    if event.get_data()["job_id"] != job_id or event.get_id() in seen:
        continue
    seen.add(event.get_id())
    kind, data = event.get_type().removeprefix("assets.generation."), event.get_data()
    print(kind)
    if kind in ("completed", "failed"):
        print(f"{data['succeeded']} of {data['total']} images of job {job_id}")
        for asset in data["assets"]:
            print(asset["uri"])
        break
connection.close()
sys.exit(0 if kind == "completed" else 1)
