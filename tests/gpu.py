"""Work on a GPU for tests: `gpu.py name options-as-JSON`, one process each, as precision asks."""

import json
import sys
import tempfile

import torch
from conftest import network, tensors
from torch.utils.data import DataLoader

from resnet_ft import (
    Autosave,
    Callback,
    MixedLoader,
    ProgressBar,
    WeightAverage,
    build_model,
    fine_tune,
    make_dataloaders,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    train_model,
)
from resnet_ft.data import batches
from resnet_ft.training import callbacks


class StopAt(Callback):
    """Somebody stops the run after a step."""

    def __init__(self, epoch, step):
        self.at = epoch, step

    def on_step_begin(self, state):
        if (state.epoch, state.step) == self.at:
            raise KeyboardInterrupt


def loop(run_dir, stop_at=None, num_epochs=3):
    """BatchNorm, dropout, MixUp, a schedule per step and an average of the weights."""
    torch.manual_seed(0)
    model = network()
    optimizer = make_optimizer("adamw", parameter_groups(model, 0.01))
    train = DataLoader(tensors(36, 0), batch_size=4, shuffle=True)
    loaders = {"train": MixedLoader(train, 2), "val": DataLoader(tensors(9, 1), batch_size=4)}
    watchers = [WeightAverage(), Autosave(minutes=1e-9)]
    watchers = [StopAt(*stop_at), *watchers] if stop_at else watchers
    schedule = make_scheduler(optimizer, "cosine", 27)
    arguments = (model, loaders, None, optimizer, schedule, num_epochs)
    try:
        train_model(*arguments, run_dir=run_dir, callbacks=watchers)
    except KeyboardInterrupt:
        print("interrupted")


def recipe(run_dir, photos, cache):
    """The head, then all layers."""
    torch.manual_seed(0)
    loaders = make_dataloaders(
        photos, image_size=32, batch_size=4, num_workers=1, cache_dir=f"{cache}/images"
    )
    model = build_model("resnet18", 2, weights=None)
    model.pretrained = True  # it begins with the head
    _, history = fine_tune(
        model, loaders, epochs=2, mix="both", run_dir=run_dir, cache_dir=f"{cache}/features"
    )
    print(history.to_json())


def steps_that_wait_for_nothing(photos):
    """A step that waits for the GPU is an error, from the fourth one of the run on."""
    seen = []

    class First(Callback):
        def on_step_begin(self, state):
            seen.append((state.phase, state.step))
            torch.cuda.set_sync_debug_mode("error" if len(seen) > 3 else "default")

    class Last(Autosave):
        def on_step_end(self, state):
            super().on_step_end(state)
            torch.cuda.set_sync_debug_mode("default")

    class Quiet(ProgressBar):
        def on_step_end(self, state):
            """The bar reads the loss twice a second."""

    callbacks.ProgressBar.on_step_end = Quiet.on_step_end
    pinned = []
    copy = batches._to_gpu
    batches._to_gpu = lambda one: pinned.append(one.is_pinned() or one.ndim < 4) or copy(one)
    loaders = make_dataloaders(photos, image_size=32, batch_size=2, num_workers=2)
    model = build_model("resnet18", 2, weights=None)
    optimizer = make_optimizer("adamw", parameter_groups(model, 1e-3))
    scheduler = make_scheduler(optimizer, "cosine", 27)
    with tempfile.TemporaryDirectory() as folder:
        train_model(
            *(model, loaders, None, optimizer, scheduler, 3),
            clip_grad_norm=1.0,
            run_dir=f"{folder}/run",
            callbacks=[First(), WeightAverage(), Last()],
        )
    print(json.dumps({"steps": len(seen), "pinned": all(pinned), "copies": len(pinned)}))


def overflow(num_epochs):
    """Gradients that float16 cannot hold at first: those steps leave weights and average alone."""

    class Changes(Callback):
        def on_before_optimizer_step(self, state):
            self.before = [one.detach().clone() for one in self.watched(state)]

        def watched(self, state):
            return [*state.model.parameters(), *average.average.parameters()]

        def on_step_end(self, state):
            if state.phase == "train":
                pairs = zip(self.before, self.watched(state), strict=True)
                changed = not all(torch.equal(one, other) for one, other in pairs)
                found.append([bool(state.skipped), changed])

    class Steep(torch.nn.Module):
        def forward(self, logits, labels):
            return torch.nn.functional.cross_entropy(logits, labels) * 100

    found, average = [], WeightAverage()
    model = network()
    optimizer = make_optimizer("adamw", parameter_groups(model, 0.01))
    loaders = {name: DataLoader(tensors(12, 0), batch_size=4) for name in ("train", "val")}
    _, history = train_model(
        model, loaders, Steep(), optimizer, None, num_epochs, callbacks=[average, Changes()]
    )
    print(json.dumps({"found": found, "skipped": history["skipped_steps"].tolist()}))


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
