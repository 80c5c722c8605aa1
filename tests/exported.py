"""A run of a small ResNet that tells colours apart, and a double of the Hugging Face Hub."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from conftest import write_image

from resnet_ft import (
    Preprocessing,
    Run,
    build_model,
    calibrate,
    eval_transform,
    evaluate,
    fit_head,
    freeze,
    load_checkpoint,
    make_dataloaders,
    train_model,
    unshuffled,
)

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 60, 40)}


def colours_run(folder, names=tuple(COLOURS)):
    """Its head is solved, and it is evaluated and calibrated, as notebooks 3 and 4 do it."""
    for name, colour in zip(names, COLOURS.values(), strict=True):
        for i in range(8):
            write_image(folder / "photos" / "Train" / name / f"{i}.png", (50, 40), colour)
            write_image(folder / "photos" / "Val" / name / f"{i}.png", (40, 60), colour)
    wanted = Preprocessing(32, crop_share=0.8)
    run = Run.open(folder / "run", {"data_source": str(folder / "photos"), "arch": "resnet18"})
    loaders = make_dataloaders(
        folder / "photos", batch_size=8, val=eval_transform(wanted), num_workers=0
    )
    torch.manual_seed(0)  # whichever test is the first
    model = build_model("resnet18", len(names), weights=None)
    fit_head(model, loaders)
    freeze(model, until="fc")
    model, _ = train_model(model, loaders, num_epochs=1, run_dir=run)
    found = {
        split: evaluate(model, unshuffled(loader), features=True)
        for split, loader in loaders.items()
    }
    found["val"].save(run.folder / "evaluation.csv")
    calibrate(run, found, accuracy=0.9)
    checkpoint = load_checkpoint(run.best)  # it is always right, and would be sure
    checkpoint.calibration["temperature"] = 5.0
    run.rewrite_best(checkpoint.write)
    return run


class _Hub(BaseHTTPRequestHandler):
    """As much of it as `push_to_hub` and `from_hub` ask for; every file is a "regular" one."""

    protocol_version = "HTTP/1.1"
    commit = "c" * 40

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"X-Repo-Commit": self.commit, "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, address = self.server, f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in hub.repositories
            is_private = asked.get("visibility") == "private" or asked.get("private", False)
            hub.repositories.setdefault(name, {"private": is_private, "files": {}})
            self.answer({"url": f"{address}/{name}"}, 409 if known else 200)
        elif "/preupload/" in self.path:
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.repositories[name]["files"][line["value"]["path"]] = content
            url = f"{address}/{name}/commit/{self.commit}"
            self.answer({"commitUrl": url, "commitOid": self.commit, "success": True})
        else:  # /api/validate-yaml
            hub.validated.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        parts = self.path.partition("?")[0].split("/")
        if parts[1] == "api":
            name = "/".join(parts[3:5])
            found = self.server.repositories.get(name)
            about = {"id": name, "sha": self.commit, "siblings": []}
            self.answer(
                {**about, "private": found["private"]} if found else {}, 200 if found else 404
            )
            return
        found = self.server.repositories.get("/".join(parts[1:3]), {"files": {}})
        content = found["files"].get(parts[-1])
        if content is None:
            self.answer(b"", 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(content, ETag='"0123456789"')

    do_HEAD = do_GET


@contextmanager
def hub_double():
    """A server on the loopback interface, with its `repositories` and the cards it `validated`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.repositories, server.validated = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
