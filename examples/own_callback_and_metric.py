"""A metric and a callback of your own in `train_model`.

A metric is a function of logits (N, C) and labels (N,); the history gets its mean over the images
of each phase, here the columns train_top2 and val_top2. A callback fills the hooks that it needs;
this one looks at the gradients between backward and the optimizer's step.
"""

import torch
from torch import Tensor

from resnet_ft import (
    Callback,
    TrainingState,
    build_model,
    make_dataloaders,
    stage_dataset,
    train_model,
)

DATA = "sample"


def top2(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the true class is among the two most probable ones, for each image (N,)."""
    return (logits.topk(2, dim=1).indices == labels[:, None]).any(dim=1)


class GradientNorm(Callback):
    """Adds the largest gradient norm of each epoch to its row of the history."""

    def on_epoch_begin(self, state: TrainingState) -> None:
        self.norms: list[Tensor] = []

    def on_before_optimizer_step(self, state: TrainingState) -> None:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients))  # no .item(): it would wait

    def on_phase_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            state.row["gradient_norm"] = torch.stack(self.norms).max().item()


def main() -> None:
    torch.manual_seed(0)
    dataloaders = make_dataloaders(stage_dataset(DATA), image_size=64, batch_size=16)
    model = build_model("resnet18", len(dataloaders["train"].dataset.classes), weights=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    model, history = train_model(
        model,
        dataloaders,
        optimizer=optimizer,
        num_epochs=3,
        metrics={"top2": top2},
        callbacks=[GradientNorm()],
    )
    print(history[["epoch", "val_accuracy", "train_top2", "val_top2", "gradient_norm"]])


if __name__ == "__main__":
    main()
