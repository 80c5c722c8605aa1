"""Lightning, as in its documentation of transfer learning: what is frozen computes no gradients.

There, too, it stays in evaluation mode. Loaders and transforms are those of the tutorial.
"""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from training import BATCH_SIZE, EPOCHS
from training.clock import Clock
from training.layers import TRAINED
from training.tutorial import image_loaders


class _Classifier(LightningModule):
    def __init__(self, frozen: nn.Module, trained: nn.Module):
        super().__init__()
        self.feature_extractor = frozen.eval()  # fit leaves the mode of modules as it is
        self.classifier = trained

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            representations = self.feature_extractor(images)
        return self.classifier(representations)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), batch_size=BATCH_SIZE)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("val_accuracy", accuracy, batch_size=BATCH_SIZE)

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.classifier.parameters(), lr=1e-3)


class _Laps(Callback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_start(self, *_: object) -> None:
        self.clock.lap()

    def on_train_epoch_end(self, *_: object) -> None:
        self.clock.lap()  # validation comes before this


def _train(data_dir: Path, scratch: Path, model: nn.Module, clock: Clock, *, recipe: str) -> None:
    loaders = image_loaders(data_dir)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=scratch,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=[_Laps(clock)],
    )
    classifier = _Classifier(*_cut(model, TRAINED[recipe][0]))
    trainer.fit(classifier, loaders["Train"], loaders["Val"])


def _cut(model: nn.Module, first_trained: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The layers before this one, and those from it on."""
    layers = dict(model.named_children())
    names = list(layers)
    layers["fc"] = nn.Sequential(nn.Flatten(), model.fc)
    cut = names.index(first_trained)
    parts = (names[:cut], names[cut:])
    frozen, trained = (nn.Sequential(*(layers[name] for name in part)) for part in parts)
    return frozen, trained


RECIPES = {recipe: partial(_train, recipe=recipe) for recipe in TRAINED}
