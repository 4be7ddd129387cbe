"""Tasks of a Python worker beside the asset worker. Each writes a line with what it was given to the file RECORD."""

import json
import os

from celery import Celery

app = Celery("tasks", broker=os.environ["AMQP_URL"], backend="rpc://")
app.conf.update(
    task_routes={"assets.*": {"exchange": "assets.commands", "exchange_type": "direct", "routing_key": "generate"}},
    control_queue_exclusive=True,
)


def record(request, args):
    line = {
        "task": request.task,
        "id": request.id,
        "root": request.root_id,
        "parent": request.parent_id,
        "group": request.group,
        "args": args,
    }
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(line) + "\n")


@app.task(bind=True, name="tasks.describe")
def describe(self, project_id):
    record(self.request, [project_id])
    return {"project_id": project_id, "image_descriptions": ["A lighthouse at dawn", "A lighthouse at dusk"]}


@app.task(bind=True, name="tasks.render")
def render(self, assets):
    record(self.request, [assets])
    return {"video_of": [asset["file_path"] for asset in assets["assets"]]}


@app.task(bind=True, name="tasks.note")
def note(self, *args):
    record(self.request, args)
    return args


@app.task(bind=True, name="tasks.failed")
def failed(self, task_id):
    record(self.request, [task_id])
