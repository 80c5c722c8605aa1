"""A model of your own in `train_model`, `evaluate` and `Predictor`.

Any `nn.Module` will do that maps images (N, 3, H, W) to logits (N, C). Its checkpoint holds the
weights, the class names and how images are prepared; only the model itself has to be handed to
`Predictor.load`, since no checkpoint ever contains code.
"""

import torch
from torch import Tensor, nn

from resnet_ft import Predictor, evaluate, make_dataloaders, stage_dataset, train_model

DATA = "sample"
RUN = "runs/own_network"


class SmallNetwork(nn.Module):
    """Four convolutions, each with half the height and width of the one before."""

    def __init__(self, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in [(3, 32), (32, 64), (64, 128), (128, 256)]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def main() -> None:
    torch.manual_seed(0)
    dataloaders = make_dataloaders(stage_dataset(DATA), image_size=64, batch_size=16)
    classes = dataloaders["train"].dataset.classes
    model = SmallNetwork(len(classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # Run again, the script resumes the run in this folder, or returns at once if it is finished.
    model, _ = train_model(model, dataloaders, optimizer=optimizer, num_epochs=4, run_dir=RUN)

    predictions = evaluate(model, dataloaders["val"])
    print(f"Validation accuracy {predictions.accuracy:.1%}")
    predictor = Predictor.load(f"{RUN}/best.pt", model=SmallNetwork(len(classes)))
    path, _ = dataloaders["val"].dataset.samples[0]
    print(predictor.predict(path, top_k=2))


if __name__ == "__main__":
    main()
