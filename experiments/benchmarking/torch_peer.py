"""A plain PyTorch loop with the same model, batches and recipe, as a peer of the training step."""

# PyTorch is an optional extra: the type checker also runs where it is not installed.
# pyright: reportMissingImports=false

import os
from collections.abc import Callable

import numpy as np

from ..training.config.options import TrainConfig


def available() -> bool:
    """Returns whether PyTorch can be imported, and asks its idle threads to sleep.

    PyTorch reads that setting when it is imported, so this function sets it before the import.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def simple_cnn(num_classes: int, channels: int = 1):
    """Returns `simple_cnn` without norms as a `torch.nn.Module`, from NCHW images to logits."""
    from torch import nn

    blocks: list = []
    for width, size in ((10, 5), (20, 5), (40, 3)):
        blocks += [nn.Conv2d(channels, width, size), nn.MaxPool2d(2), nn.ReLU()]
        channels = width
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels, num_classes))


def training_steps(
    config: TrainConfig, images: np.ndarray, labels: np.ndarray, order: np.ndarray, num_classes: int, threads: int
) -> Callable[[int], None]:
    """Returns a function that takes a number of training steps: gather, standardise, forward, backward, update.

    Args:
      config: the configuration: batch size, rate, momentum and weight decay. The optimizer is heavy-ball SGD.
      images: the images, uint8, shape (n, height, width, channels).
      labels: the labels, int32, shape (n,).
      order: the indices of each step's batch, shape (steps, batch size); after the last step the first follows.
      num_classes: the number of classes.
      threads: the number of threads that PyTorch may use.
    """
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    model = simple_cnn(num_classes, images.shape[-1])
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.peak_learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    mean, std = float(images.mean() / 255), float(images.std() / 255)
    targets = torch.from_numpy(labels.astype(np.int64))
    batches = torch.from_numpy(order.astype(np.int64))
    done = 0

    def steps(number: int) -> None:
        nonlocal done
        for _ in range(number):
            batch = batches[done % len(batches)]
            done += 1
            x = (pixels[batch].float() / 255 - mean) / std
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(x), targets[batch]).backward()
            optimizer.step()

    return steps
