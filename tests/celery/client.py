"""Calls the worker with Celery and prints what a caller sees as JSON. Usage: client.py SCENARIO [ARGUMENT]"""

import json
import os
import sys
import time
import uuid

from celery import Celery, chain, chord, group
from kombu import Queue

app = Celery("client", broker=os.environ["AMQP_URL"], backend="rpc://")
app.conf.update(
    task_routes={"assets.*": {"exchange": "assets.commands", "exchange_type": "direct", "routing_key": "generate"}},
    control_queue_exclusive=True,
    result_expires=60,
)
TASK = "assets.generate"
TIMEOUT = 60


def generate(number, descriptions=("A fox",), **options):
    command = {"project_id": number, "image_descriptions": list(descriptions)}
    return app.signature(TASK, kwargs=command, **options)


def outcome(result):
    """The value of a task, or the exception that its caller sees."""
    try:
        return {"value": result.get(timeout=TIMEOUT), "id": result.id}
    except Exception as error:
        kind = type(error)
        return {"error": f"{kind.__module__}.{kind.__name__}", "args": [str(one) for one in error.args], "id": result.id}


def success():
    messages = []
    result = generate(1, ["A fox", "A bear"]).apply_async()
    data = result.get(timeout=TIMEOUT, on_message=messages.append)
    states = [[message["status"], message["result"]] for message in messages]
    return {"id": result.id, "data": data, "states": states}


def arguments():
    """The three ways to pass the arguments of a command."""
    positional = app.send_task(TASK, args=(2, ["A fox"], {"seed": 7}))
    whole = app.send_task(TASK, args=({"project_id": 3, "image_descriptions": ["A bear"]},), kwargs={"config": {"seed": 8}})
    own_id = "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10"
    named = [generate(4).clone(kwargs={"job_id": own_id}).apply_async() for _ in range(2)]
    return [outcome(result) for result in [positional, whole, *named]]


def queues():
    """The worker's queue by its name, without declaring it; and in a program that has a quorum queue of its own."""
    queue = Queue("assets.generate", no_declare=True)
    command = {"project_id": 1, "image_descriptions": ["A fox"]}
    # Without the route, which names an exchange.
    app.conf.task_routes, app.amqp.router = {}, app.amqp.Router()
    named = app.send_task(TASK, kwargs=command, queue=queue)
    return outcome(named)


def failures():
    failed = generate(1, ["A bear [fault:status=400]"]).apply_async()
    invalid = app.send_task(TASK, kwargs={"project_id": 0, "image_descriptions": []})
    unknown = app.send_task("assets.paint", kwargs={"project_id": 1})
    without_project = app.send_task(TASK, args=("one", ["A fox"]))
    too_many = app.send_task(TASK, args=(1, ["A fox"], {}, 4))
    return {
        "failed": outcome(failed),
        "invalid": outcome(invalid),
        "unknown": outcome(unknown),
        "without_project": outcome(without_project),
        "too_many": outcome(too_many),
    }


def chords():
    """A chord is refused by name; only its members reach the worker."""
    body = app.signature("tasks.note", immutable=True)
    members = chord([generate(1), generate(2)], body)
    try:
        members.apply_async()
        refused_by_celery = None
    except NotImplementedError as error:
        refused_by_celery = str(error)
    linked = generate(3, link=app.signature("celery.chord", kwargs={"header": [], "body": body})).apply_async()
    grouped = app.send_task(TASK, kwargs={"project_id": 4, "image_descriptions": ["A fox"]}, chord=body)
    chained = chain(generate(5), group(app.signature("tasks.note"), app.signature("tasks.note")))
    return {
        "refused_by_celery": refused_by_celery,
        "linked": outcome(linked),
        "member": outcome(grouped),
        "group_at_the_end": bool(chained.apply_async().parent.get(timeout=TIMEOUT)),
    }


def compression():
    names = ["zlib", "gzip", "bzip2", "zstd"]
    results = [generate(number, compression=name).apply_async() for number, name in enumerate(names, 1)]
    return [outcome(result) for result in results]


def formats():
    """Serialisers and compressions that are not accepted; each caller is told."""
    pickled = generate(1, serializer="pickle").apply_async()
    yaml = generate(2, serializer="yaml").apply_async()
    lzma = generate(3, compression="lzma").apply_async()
    bomb = generate(4, ["A" * 8_000_000], compression="zlib").apply_async()
    return {name: outcome(result) for name, result in
            {"pickle": pickled, "yaml": yaml, "lzma": lzma, "bomb": bomb}.items()}


def links():
    note, failed = app.signature("tasks.note"), app.signature("tasks.failed")
    good = generate(1, link=[note, note.clone(args=("with", "more"))], link_error=failed).apply_async()
    immutable = generate(2, link=app.signature("tasks.note", args=("alone",), immutable=True)).apply_async()
    bad = generate(3, ["A bear [fault:status=400]"], link=note, link_error=failed).apply_async()
    return [outcome(result) for result in [good, immutable, bad]]


def pipelines():
    render = app.signature("tasks.render", link_error=app.signature("tasks.failed"))
    whole = chain(app.signature("tasks.describe", args=(1,)), app.signature(TASK), render, app.signature("tasks.note"))
    broken = chain(generate(2, ["A bear [fault:status=400]"]), render)
    several = group(generate(3), chain(generate(4), render))
    whole, broken, several = whole.apply_async(), broken.apply_async(), several.apply_async()
    return {
        "whole": outcome(whole),
        "broken": outcome(broken),
        "several": several.get(timeout=TIMEOUT),
    }


def later():
    """A job that is due in some seconds, with a link; and one that expires before it is due."""
    options = {"link": app.signature("tasks.note"), "link_error": app.signature("tasks.failed")}
    started_at = time.monotonic()
    due = generate(1).apply_async(countdown=2, expires=50, **options)
    expired = generate(2).apply_async(countdown=30, expires=1)
    job_id = str(uuid.uuid4())
    shared = [generate(3).clone(kwargs={"job_id": job_id}).apply_async(countdown=2) for _ in range(2)]
    due = outcome(due)
    elapsed = time.monotonic() - started_at
    return {"due": due, "elapsed": elapsed, "expired": outcome(expired), "shared": [outcome(one) for one in shared]}


def expires():
    """The account gate is closed, so that the message expires on the queue."""
    return outcome(generate(1).apply_async(expires=1))


def revoke():
    """Revokes a job that is due later and one that runs; the worker has one slot, so a third one waits on the queue."""
    due = generate(1).apply_async(countdown=600)
    running = generate(2, [f"Fox {number}" for number in range(40)]).apply_async()
    for message in iter_states(running):
        if message == "PROGRESS":
            break
    queued = generate(3).apply_async()
    for result in [due, running, queued]:
        result.revoke()
    return [outcome(result) for result in [due, running, queued]]


def iter_states(result):
    last = None
    while True:
        if result.state != last:
            last = result.state
            yield last


def inspect():
    """What remote control says while a job runs."""
    result = generate(1, [f"Fox {number}" for number in range(6)]).apply_async()
    for message in iter_states(result):
        if message == "PROGRESS":
            break
    inspector = app.control.inspect(timeout=5, limit=1)
    answers = {name: getattr(inspector, name)() for name in ["ping", "active", "reserved", "stats", "registered"]}
    node = next(iter(answers["ping"]))
    answers["other"] = app.control.inspect(destination=["celery@elsewhere"], timeout=0.5).ping()
    answers["matched"] = app.control.inspect(pattern="asset-worker-*", matcher="glob", timeout=5, limit=1).ping()
    answers["conf"] = app.control.inspect(destination=[node], timeout=5).conf()
    return {"id": result.id, "node": node, "answers": answers, "outcome": outcome(result)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
