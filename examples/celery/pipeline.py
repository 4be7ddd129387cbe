"""A video pipeline with Celery: describe a topic, generate the images, render the video.

Start its worker, which runs describe and render, and then a video:

    celery --app pipeline worker --loglevel INFO
    python pipeline.py "A lighthouse"
"""

import os
import sys

from celery import Celery, chain

app = Celery("pipeline", broker=os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//"), backend="rpc://")
# To the exchange: Celery would declare a queue of this name as a classic one.
app.conf.task_routes = {
    "assets.generate": {"exchange": "assets.commands", "exchange_type": "direct", "routing_key": "generate"},
}
# RabbitMQ 4.3 refuses queues that are neither durable nor exclusive.
app.conf.control_queue_exclusive = True


@app.task
def describe(topic):
    """The result is the whole command of the next task."""
    times = ["dawn", "noon", "dusk"]
    return {
        "project_id": 42,
        "image_descriptions": [f"{topic} at {time}" for time in times],
        "config": {"style_modifiers": ["cinematic lighting"]},
    }


@app.task
def render(assets):
    """Takes the data of the job's terminal event."""
    return f"a video of {assets['succeeded']} images: {', '.join(asset['file_path'] for asset in assets['assets'])}"


@app.task
def report_failure(task_id):
    print(f"the images of task {task_id} could not be generated", flush=True)


def main():
    generate_assets = app.signature("assets.generate", link_error=report_failure.s())
    video = chain(describe.s(sys.argv[1]), generate_assets, render.s()).apply_async()
    print(video.get(timeout=600))


if __name__ == "__main__":
    main()
