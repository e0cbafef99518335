"""``masks:DIR``: pictures, and a mask of class numbers for each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edgekit.base import words
from edgekit.base.errors import InvalidDataError
from edgekit.data import objects
from edgekit.data.images import Split
from edgekit.data.source import Source
from edgekit.data.yolo import class_names

_LAYOUTS = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
_CLASSES = ("classes.txt", "data.yaml")


class Segmented:
    """``DIR/images`` with ``DIR/masks``, or ``DIR/JPEGImages`` with ``DIR/SegmentationClass``.

    A mask is a PNG of its picture's name and size. Its numbers are classes from 0: values of a grey
    PNG, or places in the palette of one with colours; 255 is void. Names of classes are in
    ``classes.txt``, a line each from class 0 on; ``#classes=FILE`` names another file.
    ``#split=train`` takes ``images/train`` with ``masks/train``, or the pictures that
    ``ImageSets/Segmentation/train.txt`` lists. Pictures come in the order of the sha256 of their
    names.
    """

    options: tuple[str, ...] = ("background", "unknown", "split", "classes")

    def open(self, place: str, split: Split, options: Mapping[str, str], *, labels: bool) -> Source:
        """List pictures and masks.

        Raises:
            InvalidDataError: If it is no such folder, or no picture has a mask.
        """
        root = objects.folder(place, "a folder with images and masks")
        drop = objects.drops_unknown(place, options)
        part = objects.split_of(place, options)
        layout = next((each for each in _LAYOUTS if (root / each[0]).is_dir()), None)
        if layout is None:
            raise InvalidDataError(
                f"{place}: expected the folders images and masks, or JPEGImages and "
                f"SegmentationClass, got neither"
            )
        pictures_in, masks_in = (root / each for each in layout)
        lists = root / "ImageSets" / "Segmentation"
        listed: set[str] | None = None
        if part is not None:
            if (pictures_in / part).is_dir():
                pictures_in, masks_in = pictures_in / part, masks_in / part
            elif (lists / f"{part}.txt").is_file():
                listed = set(objects.listed(lists / f"{part}.txt"))
            else:
                raise InvalidDataError(
                    f"{place}: expected {layout[0]}/{part} or {lists / f'{part}.txt'}, got neither"
                )
        if not masks_in.is_dir():
            raise InvalidDataError(f"{words.not_found(masks_in)}; expected its masks there")
        pictures = objects.pictures(pictures_in, objects.below(pictures_in))
        masks = {
            each[:-4]: each for each in objects.below(masks_in) if each.lower().endswith(".png")
        }
        stems = objects.shuffled(sorted({*pictures, *masks} if listed is None else listed))
        warnings = objects.counted(
            [stem for stem in stems if stem not in masks],
            "pictures have no mask and are left out",
        )
        warnings += objects.counted(
            [stem for stem in stems if stem in masks and stem not in pictures],
            "masks have no picture and are left out",
        )
        kept = [stem for stem in stems if stem in pictures and stem in masks]
        if not kept:
            raise InvalidDataError(
                f"{place}: none of {len(pictures)} pictures in {pictures_in} has a mask, NAME.png, "
                f"in {masks_in}"
            )
        names = class_names(root, options.get("classes"), _CLASSES)
        if len(names) > 255:
            raise InvalidDataError(f"{place}: expected 255 classes at most, got {len(names)}")
        paths = [pictures[stem] for stem in kept]
        files: list[Path] = [masks_in / masks[stem] for stem in kept]
        return Source(
            root.resolve().name + (f"/{part}" if part else ""),
            partial(objects.entries_of, pictures_in, paths, None, files),
            None,
            names,
            len(kept),
            tuple(warnings),
            masks=True,
            drop_unknown=drop,
        )
