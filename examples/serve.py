"""A server that says what an image shows: `python examples/serve.py runs/first`.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
    curl --form file=@photo.jpg http://127.0.0.1:8000/predict

The answer is `Prediction.to_dict()` as JSON. An image is what a request holds, never a path or an
address that a client names. One thread predicts, so that the server hears new requests meanwhile;
they wait in a queue. It needs FastAPI, uvicorn and python-multipart:
`pip install "resnet_ft[examples]"`.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from resnet_ft import ImageError, Predictor

MOST_BYTES = 20_000_000  # of a request
MOST_SECONDS = 30  # to receive it, and as long again to predict it
MOST_AT_ONCE = 500  # connections; others are answered with 503
Image.MAX_IMAGE_PIXELS = 50_000_000  # of twice as many, Pillow says that it is no honest image


def application(predictor: Predictor) -> FastAPI:
    """The server's two answers: `POST /predict` and `GET /healthz`."""
    app = FastAPI(title="resnet_ft", docs_url=None, redoc_url=None)
    worker = ThreadPoolExecutor(1)  # a network is no thing for several threads

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        return {"status": "ok", "classes": predictor.classes}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, object]:
        try:
            async with asyncio.timeout(MOST_SECONDS):
                content = await image_in(request)
        except ClientDisconnect:
            raise HTTPException(400, "It did not come completely.") from None
        except TimeoutError:
            raise HTTPException(408, f"It did not come within {MOST_SECONDS} seconds.") from None
        waiting = asyncio.get_running_loop().run_in_executor(worker, predictor.predict, content)
        try:
            async with asyncio.timeout(MOST_SECONDS):
                return (await waiting).to_dict()
        except ImageError as error:
            raise HTTPException(422, error.reason) from None
        except TimeoutError:
            raise HTTPException(503, "Too many images are waiting. Try again later.") from None

    return app


async def image_in(request: Request) -> bytes:
    """The body of a request, or the file in a form; no more of it than is allowed."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"An image may have {MOST_BYTES // 10**6} MB.")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return bytes(content)

    async def body():
        yield bytes(content)

    try:
        form = await MultiPartParser(request.headers, body(), max_files=1, max_fields=9).parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(400, f"The form cannot be read: {error}") from None
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise HTTPException(400, "Send the image as the form's `file`.")
    return await file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the folder of a run, or a checkpoint file")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: also from other machines")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    app = application(Predictor.load(options.model))
    uvicorn.run(app, host=options.host, port=options.port, limit_concurrency=MOST_AT_ONCE)


if __name__ == "__main__":
    main()
