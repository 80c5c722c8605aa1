"""A button that downloads a file, such as best.pt, to the computer in front of which one sits."""

import sys
from pathlib import Path

import ipywidgets
from IPython.display import FileLink, display

from resnet_ft.errors import RunError
from resnet_ft.files import user_path


def download_button(file: str | Path) -> ipywidgets.VBox:
    """A button that downloads a file from Colab; in Jupyter it gives a link to it.

    Raises RunError where there is no such file.
    """
    path = user_path(file)
    if not path.is_file():
        raise RunError(f"There is no file {path}. Train a model first (notebook 03).")
    megabytes = path.stat().st_size / 1e6
    button = ipywidgets.Button(
        description=f"Download {path.name} ({megabytes:.1f} MB)",
        icon="download",
        layout={"width": "auto"},
    )
    output = ipywidgets.Output()

    def download(_: object) -> None:
        output.clear_output()
        with output:
            if "google.colab" in sys.modules:
                from google.colab import files

                files.download(str(path))
            else:
                display(FileLink(str(path), result_html_prefix="On this machine: "))

    button.on_click(download)
    return ipywidgets.VBox([button, output])
