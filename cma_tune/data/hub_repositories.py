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
    """

    repo: str | None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    stem: str = "image_id"
    cut: bool = True


HUB: dict[str, HubForm] = {
    "imagenet": HubForm("ILSVRC/imagenet-1k", test="validation", cut=False),
    "caltech101": HubForm("dpdl-benchmark/caltech101"),
    "oxford_pets": HubForm("timm/oxford-iiit-pet"),
    "stanford_cars": HubForm("tanganke/stanford_cars"),
    "oxford_flowers": HubForm("dpdl-benchmark/oxford_flowers102"),
    "food101": HubForm("ethz/food101", test="validation"),
    # Its train is the published one, which must not lose a fifth.
    "fgvc_aircraft": HubForm("mteb/FGVCAircraft", label="variant", cut=False),
    "sun397": HubForm("tanganke/sun397"),
    "dtd": HubForm("tanganke/dtd"),
    "eurosat": HubForm("timm/eurosat-rgb"),
    "ucf101": HubForm(None),
    "imagenetv2": HubForm("clip-benchmark/wds_imagenetv2", image="jpg", label="cls"),
    "imagenet_sketch": HubForm("clip-benchmark/wds_imagenet_sketch", image="jpg", label="cls"),
    "imagenet_a": HubForm("barkermrl/imagenet-a"),
    "imagenet_r": HubForm("axiong/imagenet-r", label="wnid"),
}
