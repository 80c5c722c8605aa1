"""Write a run's model as ONNX in three precisions and as safetensors, and compare them.

python compare_exports.py RUN [DATA], where DATA is where the images are, if the run does not say it
or they have moved. Without arguments, a small model is trained first, on the sample data. Each file
is loaded in a fresh process and answers the same images, one at a time.
"""

import sys
import tempfile
from pathlib import Path

import resnet_ft


def train_on_sample(folder: str) -> str:
    data = resnet_ft.stage_dataset("sample")
    run = resnet_ft.Run.open(folder, {"data_source": str(data.absolute())})
    dataloaders = resnet_ft.make_dataloaders(data, image_size=64, batch_size=16)
    model = resnet_ft.build_model("resnet18", 4, weights=None)
    resnet_ft.fine_tune(model, dataloaders, epochs=2, run_dir=run)
    return folder


def main(run: str = "", data_dir: str | None = None) -> None:
    run = run or train_on_sample("runs/compare_exports")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            precision: resnet_ft.export_onnx(
                run,
                Path(folder, f"{precision}.onnx"),
                precision=precision,
                data_dir=data_dir,
                allow_changes=True,  # the table shows them
            )
            for precision in ("fp32", "fp16", "int8")
        }
        files["safetensors"] = resnet_ft.export_safetensors(run, folder, data_dir=data_dir)
        table = resnet_ft.compare_exports(run, files, data_dir=data_dir)
    print(table.round(4).to_string())
    print(f"{table.attrs['images']}, one at a time")


if __name__ == "__main__":
    main(*sys.argv[1:])
