"""What to beware of in the figures of a dataset: sentences for the user of a run, who is not stopped."""

from __future__ import annotations

from collections.abc import Sequence

from cma_tune.data.alike import content_digests, trained_again
from cma_tune.data.dataset import BuiltinImages, Dataset
from cma_tune.data.splits import Item


def untested_classes(dataset: Dataset) -> str | None:
    """That classes have no test image, if any has none."""
    untested, names = dataset.split.classes_without("test"), dataset.split.class_names
    if not untested:
        return None
    return (
        f"{len(untested)} of {len(names)} classes of '{dataset.name}' have no test image "
        f"(first: '{untested[0]}'); accuracies say nothing about them."
    )


def trained_test_images(dataset: Dataset, train: Sequence[Item]) -> tuple[int, str | None]:
    """How many test images are among these training images by content, and that it is so, if any is."""
    if isinstance(dataset.images, BuiltinImages):
        return 0, None  # drawn or enlarged, no two alike
    test, trained = dataset.split.test, [item.key for item in train]
    keys = dict.fromkeys([*trained, *(item.key for item in test)])
    same = trained_again(train, test, content_digests(dataset.images, list(keys), trained))
    if not same:
        return 0, None
    return len(same), (
        f"{len(same)} of {len(test)} test images of '{dataset.name}' are training images by content "
        f"(first: {same[0][0]} is {same[0][1]}); accuracies may be too high, take the copies out."
    )
