"""The design that the worker replaces, for comparison: a Celery worker with httpx, Pillow and SQLAlchemy.

`celery -A celery_design worker` runs it; `python celery_design.py publish JOBS IMAGES` queues jobs, and
`python celery_design.py size FILE...` prints the size of each image when Pillow encodes it as PNG.
"""

import asyncio
import base64
import io
import os
import pathlib
import sys
import uuid

import celery
import httpx
import sqlalchemy as sa
from PIL import Image, ImageOps
from sqlalchemy.orm import DeclarativeBase, Session

SIZE = (1920, 1080)
MAX_CONCURRENT = 4
MAX_BYTES = 10 * 1024 * 1024
MODIFIERS = "cinematic lighting, professional photography, 4k quality, highly detailed, photorealistic, warm color palette"
NEGATIVE_PROMPT = "blurry, low quality, distorted, watermark, text, logo, anime, cartoon"
ENDPOINT = "v1/generation/stable-diffusion-xl-1024-v1-0/text-to-image"

app = celery.Celery("celery_design", broker=os.environ.get("AMQP_URL"))
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1)


class Base(DeclarativeBase):
    pass


class Asset(Base):
    __tablename__ = "assets"

    id = sa.Column(sa.String, primary_key=True)
    project_id = sa.Column(sa.Integer, nullable=False)
    type = sa.Column(sa.String, nullable=False)
    status = sa.Column(sa.String, nullable=False)
    file_path = sa.Column(sa.String, nullable=False)
    extra = sa.Column("metadata", sa.JSON)


def database():
    return sa.create_engine("sqlite:///assets.db", connect_args={"timeout": 60})


async def request_image(client, limit, prompt):
    async with limit:
        body = {
            "text_prompts": [{"text": prompt, "weight": 1.0}, {"text": NEGATIVE_PROMPT, "weight": -1.0}],
            "width": 1344, "height": 768, "cfg_scale": 8.0, "steps": 40, "samples": 1,
        }
        response = await client.post(ENDPOINT, json=body)
        response.raise_for_status()
        return base64.b64decode(response.json()["artifacts"][0]["base64"])


def convert(original):
    picture = ImageOps.fit(Image.open(io.BytesIO(original)).convert("RGB"), SIZE, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def verify(file):
    picture = Image.open(io.BytesIO(file))
    picture.load()
    if picture.size != SIZE or picture.format not in ("PNG", "JPEG") or len(file) >= MAX_BYTES:
        raise ValueError("the image does not conform to the specification")


async def request_all(descriptions):
    headers = {"Authorization": f"Bearer {os.environ['STABILITY_API_KEY']}", "Accept": "application/json"}
    limit = asyncio.Semaphore(MAX_CONCURRENT)
    async with httpx.AsyncClient(base_url=os.environ["STABILITY_BASE_URL"], headers=headers, timeout=60) as client:
        tasks = [request_image(client, limit, f"{description}, {MODIFIERS}") for description in descriptions]
        return await asyncio.gather(*tasks)


@app.task
def generate_assets(project_id, job_id, descriptions):
    originals = asyncio.run(request_all(descriptions))
    folder = pathlib.Path("projects") / str(project_id) / job_id
    folder.mkdir(parents=True)
    with Session(database()) as session:
        for index, (description, original) in enumerate(zip(descriptions, originals), 1):
            file = convert(original)
            verify(file)
            path = folder / f"image_{index:03}.png"
            path.write_bytes(file)
            session.add(Asset(id=str(uuid.uuid4()), project_id=project_id, type="image", status="completed",
                              file_path=str(path), extra={"description": description, "index": index}))
            session.commit()


def main(command, *arguments):
    if command == "publish":
        jobs, images = map(int, arguments)
        Base.metadata.create_all(database())
        for job in range(jobs):
            generate_assets.delay(1, str(uuid.uuid4()), [f"Scene {image} of {job}" for image in range(images)])
    elif command == "size":
        for path in arguments:
            file = io.BytesIO()
            Image.open(path).save(file, format="PNG")
            print(len(file.getvalue()))


if __name__ == "__main__":
    main(*sys.argv[1:])
