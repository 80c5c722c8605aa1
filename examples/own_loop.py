"""A training loop of your own, in plain PyTorch, with the loaders and the model of resnet_ft.

The loaders decode each image once, seed augmentation by image and epoch, and are ordinary
DataLoaders: batches of images (N, 3, H, W), normalised, and labels (N,).
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import Predictor, build_model, make_dataloaders, save_checkpoint, stage_dataset

DATA = "sample"
EPOCHS = 3
CHECKPOINT = "runs/own_loop.pt"


def train(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    """One pass over the training images; the mean loss over them."""
    model.train()
    device = next(model.parameters()).device
    loss_sum = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
    return loss_sum / len(loader.dataset)


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """The share of images that the model predicts right."""
    model.eval()
    device = next(model.parameters()).device
    hits = 0
    for images, labels in loader:
        hits += (model(images.to(device)).argmax(dim=1).cpu() == labels).sum().item()
    return hits / len(loader.dataset)


def main() -> None:
    torch.manual_seed(0)
    dataloaders = make_dataloaders(stage_dataset(DATA), image_size=64, batch_size=16)
    classes = dataloaders["train"].dataset.classes
    # weights="auto" downloads pretrained ones; this example also runs without a network.
    model = build_model("resnet18", len(classes), weights=None)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for epoch in range(1, EPOCHS + 1):
        loss = train(model, dataloaders["train"], optimizer)
        correct = accuracy(model, dataloaders["val"])
        print(f"epoch {epoch}/{EPOCHS}   train loss {loss:.3f}   val accuracy {correct:.1%}")

    preprocessing = dataloaders["val"].dataset.preprocessing
    save_checkpoint(CHECKPOINT, model, classes=classes, preprocessing=preprocessing)
    path, _ = dataloaders["val"].dataset.samples[0]
    print(Predictor.load(CHECKPOINT).predict(path))


if __name__ == "__main__":
    main()
