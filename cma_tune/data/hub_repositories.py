"""Repositories on the Hub that hold the catalogue's datasets, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubForm:
    """How a repository on the Hub holds a dataset.

    Attributes:
        repo: the repository, or None where none is known.
        image, label: columns.
        train, test: names of the parts (validation is found by its usual names).
        stem: column with the file's name without suffix, which finds the image in the published split.
        cut: whether validation is cut from train where the source has none.
        sizes: images in its own train, validation and test, or None where it has classes that the literature
            leaves out.
    """

    repo: str | None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    stem: str = "image_id"
    cut: bool = True
    sizes: tuple[int, int, int] | None = None


HUB: dict[str, HubForm] = {
    "imagenet": HubForm("ILSVRC/imagenet-1k", test="validation", cut=False, sizes=(1_281_167, 0, 50_000)),
    "caltech101": HubForm("dpdl-benchmark/caltech101"),
    "oxford_pets": HubForm("timm/oxford-iiit-pet", sizes=(3680, 0, 3669)),
    "stanford_cars": HubForm("tanganke/stanford_cars", sizes=(8144, 0, 8041)),
    "oxford_flowers": HubForm("dpdl-benchmark/oxford_flowers102", sizes=(1020, 1020, 6149)),
    "food101": HubForm("ethz/food101", test="validation", sizes=(75_750, 0, 25_250)),
    # Its train is the published one, which must not lose a fifth.
    "fgvc_aircraft": HubForm("mteb/FGVCAircraft", label="variant", cut=False, sizes=(3334, 0, 3333)),
    "sun397": HubForm("tanganke/sun397", sizes=(19_850, 0, 19_850)),
    "dtd": HubForm("tanganke/dtd", sizes=(3760, 0, 1880)),
    "eurosat": HubForm("timm/eurosat-rgb", sizes=(16_200, 5400, 5400)),
    "ucf101": HubForm(None),
    "imagenetv2": HubForm("clip-benchmark/wds_imagenetv2", image="jpg", label="cls"),
    "imagenet_sketch": HubForm("clip-benchmark/wds_imagenet_sketch", image="jpg", label="cls"),
    "imagenet_a": HubForm("barkermrl/imagenet-a"),
    "imagenet_r": HubForm("axiong/imagenet-r", label="wnid"),
}
