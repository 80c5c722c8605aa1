"""The web page of `export_web` within a notebook."""

import sys
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from IPython.display import IFrame, display

from resnet_ft.errors import RunError
from resnet_ft.files import user_path
from resnet_ft.frontend import runs_headless


def show_site(folder: str | Path, *, height: int = 720) -> None:
    """Show a page that `export_web` made; this machine serves it while the kernel runs.

    A notebook on another machine than its kernel shows it in Colab only, and one that runs
    unattended says where it is. Raises RunError where there is no page.
    """
    place = user_path(folder)
    if not (place / "index.html").is_file():
        raise RunError(f"There is no page in {place}. Make one: export_web(run.folder, {place}).")
    if runs_headless():
        print(f"A live notebook shows the page in {place} here.")
        return
    port = _served(place.resolve())
    if "google.colab" in sys.modules:
        from google.colab import output

        output.serve_kernel_port_as_iframe(port, height=str(height))
        return
    more = ['allow="camera"', 'title="The model as a web page"']
    display(IFrame(f"http://127.0.0.1:{port}/", "100%", height, extras=more))


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""


@cache
def _served(folder: Path) -> int:
    """The port on which this process serves a folder, on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port
