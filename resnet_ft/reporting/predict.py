"""Classes of photographs: python predict.py photo.jpg [...]; needs onnxruntime, pillow, numpy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
about = session.get_modelmeta().custom_metadata_map
classes, wanted = json.loads(about["classes"]), json.loads(about["preprocessing"])
method, cut = Image.Resampling[wanted["interpolation"].upper()], wanted["image_size"]
for file in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.resize([wanted["side"] * n // min(image.size) for n in image.size], method)
    left, top = (round((n - cut) / 2) for n in image.size)
    pixels = np.asarray(image.crop((left, top, left + cut, top + cut))).transpose(2, 0, 1)
    (found, *_) = session.run(["probabilities"], {"images": pixels[None]})[0]
    best = found.argsort()[::-1][:5]
    print(file, *(f"{classes[one]} {found[one]:.4f}" for one in best), sep="\t")
