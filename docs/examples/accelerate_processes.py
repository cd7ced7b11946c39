"""The CMA loss under accelerate: the batch is split over processes, the groups of the classes are not.

    accelerate launch --multi_gpu --num_processes 2 docs/examples/accelerate_processes.py

prints what one process prints, up to rounding. (Without a GPU this starts two processes on the CPU.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, repeat

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from drawn_shapes import load_clip, load_shapes, options
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cma_tune import CMALoss, cma_objective


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train for some steps; the losses of every step, over the whole batch."""
    given = options(arguments, __doc__.split("\n")[0])
    accelerator = Accelerator(
        # The batch size is that of all processes together, and batches are drawn from the seed alone, so that
        # the number of processes changes nothing.
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
        # Without this, processes without a GPU don't find each other, and each trains alone.
        cpu=not torch.cuda.is_available(),
    )
    set_seed(0)
    model, transform, tokenizer = load_clip(given.model, given.pretrained)
    images, labels, prompts = load_shapes(transform)
    texts = tokenizer(prompts).to(accelerator.device)
    loader = DataLoader(TensorDataset(images, labels), given.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    penalty = CMALoss(reduction="mean", normalize=True, gather_across_processes=True)

    history = []
    endless = chain.from_iterable(repeat(loader))
    for step, (pixels, classes) in enumerate(islice(endless, given.steps)):
        image_features, text_features, scale = model(pixels, texts)  # [B / processes, D], [C, D]
        # The mean of this process's share; DistributedDataParallel averages its gradient over equal shares.
        ce = cross_entropy(scale * image_features @ text_features.T, classes)
        # The same value on every process, that of the whole batch.
        cma = penalty(image_features, text_features, classes)
        optimizer.zero_grad()
        accelerator.backward(cma_objective(ce, cma, given.weight))
        optimizer.step()
        whole = accelerator.reduce(ce.detach(), reduction="mean")
        history.append({"cross_entropy": whole.item(), "cma": cma.item()})
        accelerator.print(f"step {step}: cross-entropy {whole:.6f}, CMA {cma:.6f}")
    accelerator.end_training()
    return history


if __name__ == "__main__":
    main()
