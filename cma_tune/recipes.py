"""What the references chose per dataset and shots: λ of the release, CoOp's epochs. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

from cma_tune.errors import UserError

RELEASE_WEIGHTS: dict[str, dict[int, float]] = {
    "caltech101": {0: 0.8},
    "dtd": {1: 0.4, 2: 0.4, 4: 0.7, 8: 0.7, 16: 0.7},
    "eurosat": {0: 0.1},
    "fgvc_aircraft": {0: 0.8},
    "food101": {0: 0.8},
    "imagenet": {0: 0.1},
    "oxford_flowers": {0: 0.7},
    "oxford_pets": {0: 0.9},
    "stanford_cars": {0: 0.1},
    "sun397": {0: 0.2},
    "ucf101": {1: 0.8, 2: 0.8, 4: 0.8, 8: 0.6, 16: 0.6},
}
"""λ of the authors' release per dataset and shots (0: whatever the shots), for its form of the loss."""


def recipe_weight(dataset: str, shots: int, own: Mapping[int, float] | None = None) -> float:
    """The release's λ, or the user's own.

    Args:
        dataset: its name.
        shots: training images per class.
        own: λ by shots (0: whatever the shots) that the user's catalogue has for the dataset.

    Raises:
        UserError: there is none for this dataset or these shots.
    """
    weights = own or RELEASE_WEIGHTS.get(dataset, {})
    if 0 not in weights and shots not in weights:
        raise UserError(
            f"Expected a λ of the release for '{dataset}' at {shots} shot{'' if shots == 1 else 's'}, but it "
            "has none; give numbers in --weights, or the dataset a 'weight' in the file of --catalog."
        )
    return weights.get(shots, weights.get(0, 0.0))


def recipe_epochs(dataset: str, shots: int) -> int:
    """CoOp's epochs: 50 for ImageNet and 1 shot, 100 for 2 to 4 shots, 200 above."""
    if dataset == "imagenet" or shots == 1:
        return 50
    return 100 if shots <= 4 else 200
