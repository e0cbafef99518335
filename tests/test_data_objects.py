"""Boxes and masks of the user's own: each kind of file as its tools write it, and what is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done
from PIL import Image

from edgekit import data
from edgekit.base import schema
from edgekit.base.errors import ClassesError, EdgekitError, InvalidDataError, InvalidOptionError
from edgekit.base.progress import Progress
from edgekit.data import decode, describe, images, mask_files, yolo
from edgekit.data.boxes import Boxes, Views
from edgekit.data.masks import VOID, Shifted
from edgekit.records.signature import Preprocessing, preprocessing

#: Width and height of a picture; a box in it, of one colour on another.
WIDE, HIGH = 40, 30
BOX = (5, 4, 15, 20)
SAME = {"shape": (HIGH, WIDE, 3)}


class Heard(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def pixels(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (WIDE, HIGH)) -> np.ndarray:
    """A grey picture whose boxes are red."""
    values = np.full((size[1], size[0], 3), 120, np.uint8)
    for left, top, right, bottom in boxes:
        values[top:bottom, left:right] = (250, 10, 10)
    return values


def save(path: Path, values: np.ndarray, turn: int = 1, **how: Any) -> Path:
    """A picture file whose EXIF asks for a turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turn != 1:
        exif[0x0112] = turn
    if path.suffix == ".jpg":
        how |= {"quality": 100, "subsampling": 0}
    Image.fromarray(values).save(path, exif=exif.tobytes() if turn != 1 else b"", **how)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def xml(
    *objects: tuple[str, tuple[float, float, float, float]],
    size: tuple[int, int] | None = (WIDE, HIGH),
    difficult: int = 0,
    head: str = "",
) -> str:
    """An annotation of VOC: pixels from 1, the last one in the box."""
    said = ""
    if size is not None:
        said = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    body = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin>"
        f"<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for name, box in objects
    )
    return f"{head}<annotation><filename>../../etc/passwd</filename>{said}{body}</annotation>"


def voc(root: Path, notes: dict[str, str]) -> Path:
    for name, text in notes.items():
        save(root / "JPEGImages" / f"{name}.jpg", pixels(BOX))
        write(root / "Annotations" / f"{name}.xml", text)
    return root


def coco(root: Path, **changes: Any) -> Path:
    """Two pictures, three boxes of categories 3 and 90, and a file beside them."""
    save(root / "a.jpg", pixels(BOX))
    save(root / "b.jpg", pixels(BOX))
    content: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": WIDE, "height": HIGH},
            {"id": 5, "file_name": "b.jpg", "width": WIDE, "height": HIGH},
        ],
        "annotations": [
            note(1, 5, 90, [5, 4, 10, 16]),
            note(2, 7, 3, [5, 4, 10, 16]),
            note(3, 5, 3, [0, 0, 40, 30], iscrowd=1, area=900.5),
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    content |= changes
    return write(root / "set.json", json.dumps(content))


def note(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "segmentation": [[1, 2, 3, 4, 5, 6]],
        "area": box[2] * box[-1] / 2,
        "iscrowd": 0,
        **more,
    }


def load(word: str, **how: Any) -> data.ImageSet:
    return data.load(word, "test", **(SAME | how))


def corners(boxes: Boxes | None) -> list[list[float]]:
    assert boxes is not None
    return boxes.corners.tolist()


def red(image: np.ndarray) -> list[float]:
    """The box around what is red."""
    rows, columns = np.nonzero((image[..., 0].astype(int) - image[..., 1]) > 100)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# Each kind of file gives the same boxes.


def test_voc(tmp_path: Path) -> None:
    notes = {"one": xml(("cat", BOX), ("dog", (0, 0, 40, 30))), "two": xml()}
    found = load(f"voc:{voc(tmp_path, notes)}")
    order = [0, 1] if len(found.boxes[0].classes) else [1, 0]
    boxes = found.boxes.take(np.array(order))
    assert corners(boxes) == [[5, 4, 15, 20], [0, 0, 40, 30]]
    assert boxes.offsets.tolist() == [0, 2, 2]
    assert (found.class_names, boxes.classes.tolist()) == (("cat", "dog"), [0, 1])
    assert boxes.crowd is None and boxes.scores is None and boxes.areas is None
    assert found.labels is None and found.masks is None
    assert found.views.sizes.tolist() == [[HIGH, WIDE]] * 2
    assert found.views.regions.tolist() == [[0, 0, WIDE, HIGH]] * 2
    assert corners(load(f"voc:{tmp_path}#first_pixel=0").boxes)[0] == [6, 5, 15, 20]


def test_voc_in_one_folder_difficult_and_by_list(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "flat" / f"{name}.jpg", pixels(BOX))
        write(tmp_path / "flat" / f"{name}.xml", xml(("cat", BOX), difficult=int(name == "a")))
    found = load(f"voc:{tmp_path / 'flat'}")
    assert len(found) == 3 and found.boxes.crowd.sum() == 1
    root = voc(tmp_path / "set", {name: xml(("cat", BOX)) for name in "abc"})
    write(root / "ImageSets" / "Main" / "train.txt", "a\nb  -1\n\n")
    write(root / "ImageSets" / "Main" / "test.txt", "c\n")
    assert len(load(f"voc:{root}#split=train")) == 2
    assert load(f"voc:{root}#split=test").name == "set/test"
    assert "#split=test|train" in load(f"voc:{root}").warnings[0]
    with pytest.raises(InvalidDataError, match=r"val\.txt not found"):
        load(f"voc:{root}#split=val")
    with pytest.raises(InvalidOptionError, match="split as a name"):
        load(f"voc:{root}#split=../x")


def test_coco(tmp_path: Path) -> None:
    found = load(f"coco:{coco(tmp_path)}")
    assert found.class_names == ("cat", "dog")
    assert found.boxes.offsets.tolist() == [0, 1, 3]
    assert corners(found.boxes) == [[5, 4, 15, 20], [5, 4, 15, 20], [0, 0, 40, 30]]
    assert found.boxes.classes.tolist() == [0, 1, 0]
    assert found.boxes.crowd.tolist() == [False, False, True]
    assert found.boxes.areas.tolist() == [80, 80, 900.5]
    by_id = load(f"coco:{tmp_path / 'set.json'}#first_label=1")
    assert by_id.boxes.classes.tolist() == [2, 89, 2]
    assert (by_id.class_names[2], by_id.class_names[89]) == ("cat", "dog")
    assert len(by_id.class_names) == 90


def test_coco_with_pictures_elsewhere(tmp_path: Path) -> None:
    path = coco(tmp_path / "val2017")
    moved = tmp_path / "annotations" / "set.json"
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(InvalidDataError, match=r"pass #images=DIR; did you mean #images=.*val2017"):
        load(f"coco:{moved}")
    assert len(load(f"coco:{moved}#images={tmp_path / 'val2017'}")) == 2
    (tmp_path / "val2017" / "b.jpg").unlink()
    found = load(f"coco:{moved}#images={tmp_path / 'val2017'}")
    assert len(found) == 1 and corners(found.boxes) == [[5, 4, 15, 20]]
    assert "1 pictures are not in" in found.warnings[0] and "b.jpg" in found.warnings[0]


@pytest.mark.parametrize(
    ("layout", "option"),
    [
        (("images/{}.jpg", "labels/{}.txt"), ""),
        (("{}.jpg", "{}.txt"), ""),
        (("images/train/{}.jpg", "labels/train/{}.txt"), "#split=train"),
        (("images/train/{}.jpg", "labels/train/{}.txt"), ""),
        (("train/images/{}.jpg", "train/labels/{}.txt"), "#split=train"),
    ],
)
def test_yolo(tmp_path: Path, layout: tuple[str, str], option: str) -> None:
    for name, lines in (("a", "1 0.25 0.4 0.25 0.53333333\n"), ("b", "")):
        save(tmp_path / layout[0].format(name), pixels(BOX))
        write(tmp_path / layout[1].format(name), lines)
    save(tmp_path / layout[0].format("c"), pixels())
    write(tmp_path / "data.yaml", "path: x\nnc: 2\nnames: ['cat', dog]\n")
    found = load(f"yolo:{tmp_path}{option}")
    assert len(found) == 3 and found.class_names == ("cat", "dog")
    assert np.allclose(corners(found.boxes), [BOX], atol=1e-4)
    assert found.boxes.classes.tolist() == [1]
    assert any("1 pictures have no label file" in each for each in found.warnings)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, 'b c', \"d\"]\n", ("a", "b c", "d")),
        ("names:\n  - a\n  - 'it''s'\nnc: 2\n", ("a", "it's")),
        ("names:\n- a\n- b # two\nval: x\n", ("a", "b")),
        ("names:\n  0: a\n  # note\n  1: traffic light\n\ntrain: y\n", ("a", "traffic light")),
        ("nc: 2\nnames: {0: a, 1: 'b'}\n", ("a", "b")),
        ("names: [\n  'a',\n  'b',\n]\n", ("a", "b")),
    ],
)
def test_names_in_yaml(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    assert yolo.yaml_names(write(tmp_path / "data.yaml", text)) == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "names: a\n",
        "names: !!python/object/apply:os.system ['true']\n",
        "names: *anchor\n",
        "names: [a, [b]]\n",
        "names: [a, &x b]\n",
        "names:\n  0: a\n  2: b\n",
        "names: [a\n",
        "names: [a, a]\n",
        "names:\n  - {a: b}\n",
        "names: []\n",
        "names: [a]\nnames: [b]\n",
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidDataError, match=r"data\.yaml"):
        yolo.yaml_names(write(tmp_path / "data.yaml", text))


def test_masks(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"{i}.jpg", pixels(BOX))
        values = np.zeros((HIGH, WIDE), np.uint8)
        values[4:20, 5:15] = i
        values[0] = VOID
        picture = Image.fromarray(values)
        if i == 1:  # in colours, as VOC has them
            picture.putpalette([n * 40 % 256 for n in range(768)])
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"{i}.png")
    write(tmp_path / "classes.txt", "background\ncat\ndog\n")
    found = load(f"masks:{tmp_path}")
    assert len(found) == 3 and found.class_names == ("background", "cat", "dog")
    assert found.boxes is None
    seen = {int(mask[10, 10]) for mask in (found.masks[i] for i in range(3))}
    assert seen == {0, 1, 2}
    for i in range(3):
        assert found.masks[i].dtype == np.uint8
        assert (found.masks[i][0] == VOID).all() and (found.masks[i][1, 20:] == 0).all()
    other = load(f"masks:{tmp_path}", class_names=("dog", "background", "bird", "cat"))
    assert {int(other.masks[i][10, 10]) for i in range(3)} == {1, 3, 0}
    assert {int(other.masks[i][2, 30]) for i in range(3)} == {1}
    assert other.sha256 != found.sha256


def test_masks_of_voc_by_list(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "JPEGImages" / f"{name}.jpg", pixels(BOX))
        save(tmp_path / "SegmentationClass" / f"{name}.png", np.eye(HIGH, WIDE, dtype=np.uint8))
    save(tmp_path / "JPEGImages" / "c.jpg", pixels(BOX))
    write(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "b\nc\n")
    found = load(f"masks:{tmp_path}#split=val")
    assert len(found) == 1
    assert found.warnings == ("1 pictures have no mask and are left out: c",)


# Turned pictures.


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """What an EXIF orientation makes of a stored picture, by Pillow."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(values).save(stream, "PNG", exif=exif.tobytes())
    opened = decode.opened(stream.getvalue())
    return np.asarray(decode.upright(opened, channels=3, background="white"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_turn_with_their_picture(tmp_path: Path, turn: int) -> None:
    stored = pixels(BOX)
    upright = turned(stored, turn)
    high, wide = upright.shape[:2]
    root = tmp_path / "stored"
    save(root / "a.jpg", stored, turn)
    write(root / "a.xml", xml(("cat", BOX)))
    option = "#exif=stored" if turn in (2, 3, 4) else ""
    found = load(f"voc:{root}{option}", shape=(high, wide, 3))
    assert corners(found.boxes) == [red(found.images[0])]
    assert found.views.sizes.tolist() == [[high, wide]]
    root = tmp_path / "upright"
    save(root / "a.jpg", stored, turn)
    box = tuple(int(each) for each in red(upright))
    write(root / "a.xml", xml(("cat", box), size=(wide, high)))  # type: ignore[arg-type]
    found = load(f"voc:{root}", shape=(high, wide, 3))
    assert corners(found.boxes) == [red(found.images[0])]
    if turn in (2, 3, 4):
        assert "no annotated size says" in found.warnings[0]
    found = load(f"voc:{tmp_path / 'stored'}{option}")
    if turn > 4:
        assert "1 pictures are turned by EXIF and annotated as they are stored" in found.warnings[0]


@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_turn_with_their_picture(tmp_path: Path, turn: int) -> None:
    stored = pixels((5, 4, 15, 20), (15, 4, 20, 8))
    upright = turned(stored, turn)
    mask = (upright[..., 1] < 60).astype(np.uint8)
    high, wide = mask.shape
    save(tmp_path / "images" / "a.jpg", stored, turn)
    save(tmp_path / "masks" / "a.png", mask)
    assert (load(f"masks:{tmp_path}", shape=(high, wide, 3)).masks[0] == mask).all()
    if turn > 4:
        save(tmp_path / "masks" / "a.png", (stored[..., 1] < 60).astype(np.uint8))
        assert (load(f"masks:{tmp_path}", shape=(high, wide, 3)).masks[0] == mask).all()
    assert (mask_files.turned((stored[..., 1] < 60).astype(np.uint8), turn) == mask).all()


# What a model sees of a picture.


@pytest.mark.parametrize(
    ("word", "region"),
    [
        ("unit", (0, 0, 40, 30)),
        ("unit#crop=0.5", (12.5, 7.5, 15, 15)),
        ("unit#letterbox=114", (0, -5, 40, 40)),
        ("unit#letterbox=114,align=corner", (0, 0, 40, 40)),
    ],
)
def test_views(tmp_path: Path, word: str, region: tuple[float, ...]) -> None:
    root = voc(tmp_path, {"a": xml(("cat", BOX))})
    prepare = preprocessing(word)
    found = data.load(f"voc:{root}", "test", shape=(80, 80, 3), prepare=prepare)
    assert np.abs(found.views.regions - region).max() <= 0.15  # to whole pixels of the input
    assert corners(found.boxes) == [list(BOX)]  # always of the picture
    left, top, width, height = found.views.regions[0]
    x = np.array(red(found.images[0]))[[0, 2]] * width / 80 + left
    y = np.array(red(found.images[0]))[[1, 3]] * height / 80 + top
    if "crop" not in word:
        assert np.abs(x - [5, 15]).max() <= 0.5 and np.abs(y - [4, 20]).max() <= 0.5
    else:  # the box begins outside
        assert x[0] == left and abs(x[1] - 15) <= 0.5 and y[0] == 7.5 and abs(y[1] - 20) <= 0.5


def test_letterbox() -> None:
    picture = Image.fromarray(pixels(size=(40, 20)))
    prepare = preprocessing("unit#letterbox=114")
    found = decode.fit(picture, height=32, width=32, prepare=prepare)
    assert (found[:8] == 114).all() and (found[-8:] == 114).all() and (found[8:24] == 120).all()
    tall = decode.fit(picture.transpose(2), height=32, width=33, prepare=prepare)
    assert (tall[:, :8] == 114).all() and (tall[:, 24:] == 114).all()
    assert (tall[:, 8:24] == 120).all()
    corner = preprocessing("unit#letterbox=0,align=corner")
    found = decode.fit(picture, height=32, width=32, prepare=corner)
    assert (found[16:] == 0).all() and (found[:16] == 120).all()
    long = Image.fromarray(pixels(size=(5000, 2)))
    assert decode.fit(long, height=8, width=8, prepare=prepare).shape == (8, 8, 3)
    assert schema.from_json(Preprocessing, schema.to_json(corner)) == corner


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("unit#letterbox=256", "letterbox from 0 to 255"),
        ("unit#letterbox=x", "letterbox as an integer"),
        ("unit#letterbox=0,crop=0.9", "crop or letterbox, got both"),
        ("unit#align=corner", "align corner is for letterbox"),
        ("unit#letterbox=0,align=left", "expected align as centre, corner"),
    ],
)
def test_letterbox_that_is_refused(word: str, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        preprocessing(word)


# Parts, identity, samples.


def test_parts_keep_what_is_right(tmp_path: Path) -> None:
    notes = {f"{i}": xml(*[("cat", BOX)] * i) for i in range(5)}
    found = load(f"voc:{voc(tmp_path, notes)}")
    counts = np.diff(found.boxes.offsets)
    head = found.head(2)
    assert np.diff(head.boxes.offsets).tolist() == counts[:2].tolist()
    assert len(head.views) == 2 and head.sha256 != found.sha256
    some = found.take(np.array([3, 0]))
    assert np.diff(some.boxes.offsets).tolist() == counts[[3, 0]].tolist()
    assert some.named(("x",)).boxes is some.boxes
    assert len(found.sample(3, 1)) == len(found.sample(3, 1).boxes) == 3
    assert set(found.offset(1).boxes.classes.tolist()) == {1}
    assert found.offset(1).class_names == ("background", "cat")
    again = load(f"voc:{tmp_path}")
    assert again.sha256 == found.sha256
    write(tmp_path / "Annotations" / "4.xml", notes["3"])
    assert load(f"voc:{tmp_path}").sha256 != found.sha256
    calibration = data.load(f"voc:{tmp_path}", "calibration", **SAME)
    assert calibration.boxes is None and calibration.views is not None
    assert calibration.sha256 == images.make("x", found.images, None).sha256


def test_parts_of_masks(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "images" / f"{i}.jpg", pixels(BOX))
        save(tmp_path / "masks" / f"{i}.png", np.full((HIGH, WIDE), (i, VOID)[i == 3], np.uint8))
    found = load(f"masks:{tmp_path}")
    first = [int(found.masks[i][0, 0]) for i in range(4)]
    part = found.take(np.array([2, 1]))
    assert [int(part.masks[i][0, 0]) for i in range(2)] == [first[2], first[1]]
    assert len(found.head(1).masks) == 1
    moved = found.offset(1)
    assert [int(moved.masks[i][0, 0]) for i in range(4)] == [
        each if each == VOID else each + 1 for each in first
    ]
    assert isinstance(moved.masks.take(np.array([1])), Shifted)
    # The identity is of the content, whatever kind of masks holds it.
    same = images.make("x", found.images, None, masks=Shifted(found.masks, 0), views=found.views)
    assert same.sha256 == found.sha256
    (tmp_path / "masks" / "0.png").unlink()
    with pytest.raises(InvalidDataError, match="cannot be read any more"):
        [found.masks[i] for i in range(4)]


def test_sets_that_do_not_fit_together() -> None:
    values = np.zeros((2, 4, 4, 3), np.uint8)
    none = Boxes(np.zeros(2, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    with pytest.raises(InvalidDataError, match="2 images but 1 lists of boxes"):
        images.make("x", values, None, boxes=none)
    with pytest.raises(InvalidDataError, match="2 images but 3 views"):
        images.make("x", values, None, views=Views.whole(3, 4, 4))
    bad = Boxes(
        np.array([0, 0, 1]), np.array([[0, 0, np.nan, 1]], np.float32), np.zeros(1, np.int32)
    )
    with pytest.raises(InvalidDataError, match="a box of image 1 holds NaN"):
        images.make("x", values, None, boxes=bad)


def test_samples_are_spread_over_classes() -> None:
    shown = np.zeros((1000, 3), np.bool_)
    shown[:900, 0] = True  # common, also beside the others
    shown[880:900, 1] = True
    shown[900:910, 2] = True  # rare, and 90 pictures without any object
    drawn = images.spread("x", shown, 40, 3)
    assert len(set(drawn.tolist())) == 40 and (np.diff(drawn) > 0).all()
    times = [*shown[drawn].sum(axis=0).tolist(), int((~shown[drawn].any(axis=1)).sum())]
    assert times[2] == 10 and min(times) >= 10 and times[0] <= 20
    assert (drawn == images.spread("x", shown, 40, 3)).all()
    assert (drawn != images.spread("x", shown, 40, 4)).any()
    assert images.spread("x", shown, 1000, 0).tolist() == list(range(1000))
    with pytest.raises(InvalidDataError, match="at least 1001"):
        images.spread("x", shown, 1001, 0)


def test_calibration_samples_of_rare_classes(tmp_path: Path) -> None:
    notes = {f"{i}": xml(("cat", BOX), *([("dog", BOX)] if i == 7 else [])) for i in range(20)}
    word = f"voc:{voc(tmp_path, notes)}#samples=4,seed=1"
    opened = data.open_word(word, "calibration")
    assert opened.source.shown()[opened.source.draw(4, 1)][:, 1].any()
    drawn = opened.load(**SAME)
    assert len(drawn) == 4 and drawn.name.endswith("[4 of 20, seed 1]")
    found = data.load(word, "test", **SAME)
    assert 1 in found.boxes.classes and len(found.boxes) == 4


def test_samples_of_masks(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "images" / f"{i}.jpg", pixels(BOX))
        save(tmp_path / "masks" / f"{i}.png", np.full((HIGH, WIDE), i == 5, np.uint8))
    found = load(f"masks:{tmp_path}#samples=3")
    assert sorted(int(found.masks[i][0, 0]) for i in range(3)) == [0, 0, 1]


# Classes.


def test_classes_by_the_models_names(tmp_path: Path) -> None:
    path = coco(tmp_path)
    found = load(f"coco:{path}", class_names=("bird", "Dog", "CAT"))
    assert found.boxes.classes.tolist() == [2, 1, 2]
    assert found.class_names == ("bird", "Dog", "CAT")
    numbers = load(f"coco:{path}", class_names=("0", "1"))
    assert numbers.boxes.classes.tolist() == [0, 1, 0]
    heard = Heard()
    data.load(f"coco:{path}", "test", progress=heard, **SAME)
    assert heard.said == ["set.json: classes in this order: cat, dog"]


def test_classes_that_the_model_does_not_know(tmp_path: Path) -> None:
    path = coco(tmp_path)
    with pytest.raises(ClassesError, match=r"does not know dog; .* #unknown=drop"):
        load(f"coco:{path}", class_names=("cat", "bird"))
    found = load(f"coco:{path}#unknown=drop", class_names=("cat", "bird"))
    assert found.boxes.classes.tolist() == [0, 0]
    assert "1 boxes are of classes that the model does not know" in found.warnings[0]
    with pytest.raises(ClassesError, match="has 2 classes"):
        load(f"coco:{path}", class_names=("0", "1", "2"))
    with pytest.raises(ClassesError, match="are not the model's"):
        load(f"coco:{path}#unknown=drop", class_names=("x", "y"))
    with pytest.raises(InvalidOptionError, match="unknown as refuse or drop"):
        load(f"coco:{path}#unknown=keep")


def test_numbers_beyond_the_models_classes(tmp_path: Path) -> None:
    for name, label in (("a", 0), ("b", 5)):
        save(tmp_path / "images" / f"{name}.jpg", pixels(BOX))
        write(tmp_path / "labels" / f"{name}.txt", f"{label} 0.5 0.5 0.2 0.2")
    assert set(load(f"yolo:{tmp_path}").boxes.classes.tolist()) == {0, 5}
    with pytest.raises(InvalidDataError, match=r"1 boxes have classes .*, 5 the first"):
        load(f"yolo:{tmp_path}", class_names=("0", "1"))
    found = load(f"yolo:{tmp_path}#unknown=drop", class_names=("0", "1"))
    assert found.boxes.classes.tolist() == [0]
    write(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(InvalidDataError, match="names end at 0"):
        load(f"yolo:{tmp_path}")
    assert load(f"yolo:{tmp_path}#unknown=drop").boxes.classes.tolist() == [0]


def test_numbers_in_masks_that_nothing_names(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", pixels(BOX))
    values = np.zeros((HIGH, WIDE), np.uint8)
    values[:5] = 7
    save(tmp_path / "masks" / "a.png", values)
    assert int(load(f"masks:{tmp_path}").masks[0][0, 0]) == 7
    with pytest.raises(InvalidDataError, match=r"1 masks cannot be used: a\.jpg \(shows class 7"):
        load(f"masks:{tmp_path}", class_names=("0", "1"))
    found = load(f"masks:{tmp_path}#unknown=drop", class_names=("0", "1"))
    assert int(found.masks[0][0, 0]) == VOID


# What is wrong is counted and named.


def test_boxes_that_are_wrong(tmp_path: Path) -> None:
    boxes = [
        (5, 4, 15, 20),
        (-5, 4, 15, 20),  # clipped
        (30, 10, 40.5, 20),  # rounded
        (10, 10, 10, 20),  # no width
        (15, 20, 5, 4),  # turned around
        (50, 10, 60, 20),  # outside
    ]
    notes = [note(i, 7, 3, [l, t, r - l, b - t], area=1) for i, (l, t, r, b) in enumerate(boxes)]  # noqa: E741
    found = load(f"coco:{coco(tmp_path, annotations=notes)}")
    assert corners(found.boxes) == [[5, 4, 15, 20], [0, 4, 15, 20], [30, 10, 40, 20]]
    assert found.warnings == (
        "2 boxes have no width or no height and are left out: a.jpg",
        "1 boxes lie outside of their picture and are left out: a.jpg",
        "1 boxes reach out of their picture and are clipped: a.jpg",
    )
    with pytest.raises(InvalidDataError, match="none of 2 pictures has a box that counts; 1 boxes"):
        load(f"coco:{coco(tmp_path, annotations=notes[3:4])}")


def test_pictures_of_another_size_than_annotated(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": xml(("cat", BOX)), "b": xml(("cat", BOX), size=(WIDE, HIGH + 1))})
    found = load(f"voc:{root}")
    assert len(found) == 1
    assert found.warnings == (
        "1 of 2 pictures have another size than their annotation says and are left out: "
        "b.jpg (40 x 30, annotated as 40 x 31)",
    )
    assert len(data.load(f"voc:{root}", "calibration", **SAME)) == 2  # boxes do not matter
    write(root / "Annotations" / "a.xml", xml(("cat", BOX), size=(30, 40)))  # not turned
    with pytest.raises(InvalidDataError, match="none of 2 pictures has the size"):
        load(f"voc:{root}")
    for size in (None, (0, 0)):
        write(root / "Annotations" / "a.xml", xml(("cat", BOX), size=size))
        assert corners(load(f"voc:{root}").boxes) == [list(BOX)]


def test_pictures_and_annotations_that_miss_each_other(tmp_path: Path) -> None:
    root = voc(tmp_path, {name: xml(("cat", BOX)) for name in "abc"})
    (root / "Annotations" / "a.xml").unlink()
    (root / "JPEGImages" / "b.jpg").unlink()
    found = load(f"voc:{root}")
    assert len(found) == 1
    assert found.warnings == (
        "1 annotations have no picture and are left out: b",
        "1 pictures have no annotation and are left out: a",
    )


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken XML: no element found"),
        ("<annotation>", "broken XML"),
        ("<html></html>", "expected <annotation>, got <html>"),
        (xml(("cat", BOX), head=BOMB), "a document type or entity"),
        (
            xml(("&x;", BOX), head='<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
            "a document type or entity",
        ),
        (xml(("&x;", BOX)), "undefined entity"),
        ("<annotation>" + "<a>" * 40 + "</a>" * 40 + "</annotation>", "more than 32 levels"),
        (xml(("", BOX)), "an object without <name>"),
        (xml(("cat", (float("nan"), 1, 2, 3))), "expected <xmin> as a number"),
        (xml(("cat", (1, 1, 1e300, 3))), "expected <xmax> as a number"),
        (xml(size=(10**30, 3)), "expected width and height as integers"),
        ("<?xml version='1.0' encoding='zip'?><annotation/>", "not a text encoding"),
        ("<annotation><object><name>a</name></object></annotation>", "expected <xmin>"),
    ],
)
def test_xml_that_is_broken_or_hostile(tmp_path: Path, text: str, message: str) -> None:
    root = voc(tmp_path, {"good": xml(("cat", BOX)), "bad": text})
    found = load(f"voc:{root}")
    assert len(found) == 1 and len(found.warnings) == 1
    assert found.warnings[0].startswith("1 annotations cannot be read; their pictures are left out")
    assert message in found.warnings[0] and "bad.xml" in found.warnings[0]
    (root / "Annotations" / "good.xml").unlink()
    with pytest.raises(InvalidDataError, match="no picture has an annotation that can be read"):
        load(f"voc:{root}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: expected class, centre x"),
        ("0 0.5 0.5 0.2 nan", "line 1"),
        ("0.0 0.5 0.5 0.2 0.2", "line 1"),
        ("-1 0.5 0.5 0.2 0.2", "line 1"),
        ("0 320 240 50 50", "line 1"),
        ("cat 0.5 0.5 0.2 0.2", "line 1"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "polygons are not read"),
    ],
)
def test_lines_that_are_no_boxes(tmp_path: Path, line: str, message: str) -> None:
    for name, text in (("a", line), ("b", "0 0.5 0.5 0.2 0.2")):
        save(tmp_path / "images" / f"{name}.jpg", pixels(BOX))
        write(tmp_path / "labels" / f"{name}.txt", text)
    found = load(f"yolo:{tmp_path}")
    assert len(found) == 1 and "1 label files cannot be read" in found.warnings[0]
    assert message in found.warnings[0]


CAT = [{"id": 3, "name": "cat"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"id": 1, "image_id": 7, "caption": "a cat"}]}, "holds captions"),
        ({"annotations": None}, "annotations is none"),
        ({"categories": []}, "has no categories"),
        ({"images": []}, "the set is empty"),
        ({"annotations": []}, "has no box"),
        ({"annotations": [note(1, 7, 3, [1, 2, 3])]}, r"annotations\[0\]: expected bbox"),
        ({"annotations": [note(1, 7, 3, [1, 2, 3, 1e300])]}, "expected bbox"),
        ({"annotations": [note(1, 7, 3, [1, 2, 3, True])]}, "expected bbox"),
        ({"annotations": [note(1, 7, 3, [1, 2, 3, 4], area="x")]}, "expected area"),
        ({"annotations": [note(1, 7, 44, [1, 2, 3, 4])]}, "1 annotations have category ids"),
        ({"annotations": [note(1, 10**30, 3, [1, 2, 3, 4])]}, "expected image_id as an integer"),
        ({"annotations": [{"segments_info": []}]}, "panoptic"),
        ({"categories": CAT * 2}, "category id 3 is there twice"),
        ({"categories": [*CAT, {"id": 90, "name": "cat"}]}, "class cat is there 2 times"),
        ({"categories": [{"id": 3, "name": 5}]}, "expected a name"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "1 ids of images are there twice"),
        ({"images": [{"id": 7, "file_name": "../a.jpg"}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "/etc/passwd"}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "a\0.jpg"}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "a" * 300}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "a/" * 3000}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "\ud800.jpg"}]}, "none of its 1 pictures is in"),
        ({"images": [{"id": 7}]}, "a path below the folder"),
        ({"images": [{"id": 7, "file_name": "x.jpg"}]}, "none of its 1 pictures is in"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 1e9, "height": 2}]}, "as integers"),
        ({"images": [{"id": "7", "file_name": "a.jpg"}]}, "expected id as an integer"),
        (
            {"images": [{"id": i, "file_name": "a.jpg"} for i in (1, 2)]},
            r"picture a\.jpg is there 2 times",
        ),
    ],
)
def test_coco_that_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = coco(tmp_path, **changes)
    with pytest.raises(InvalidDataError, match=message) as caught:
        load(f"coco:{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"images": [NaN]}', "NaN is not a number"),
        ('{"images": [1' + "0" * 5000 + "]}", "not valid JSON"),
        ('[{"image_id": 1, "score": 0.5}]', "got a list of results"),
        ("3", "expected an object"),
        ("\xff", "not valid JSON|none"),
    ],
)
def test_json_of_another_form(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidDataError, match=message):
        load(f"coco:{path}")


def test_annotations_that_belong_nowhere(tmp_path: Path) -> None:
    notes = [
        note(1, 7, 3, [5, 4, 10, 16]),
        note(1, 7, 3, [5, 4, 10, 16]),
        note(2, 999, 3, [5, 4, 10, 16]),
        note(3, 5, 44, [5, 4, 10, 16]),
    ]
    found = load(f"coco:{coco(tmp_path, annotations=notes)}#unknown=drop")
    assert corners(found.boxes) == [[5, 4, 15, 20]]
    assert found.warnings == (
        "1 annotations are of image ids that are not there and are left out: 999",
        "1 annotations have category ids that are not there and are left out: 44",
        "1 annotations have an id that an earlier one has and are left out: 1",
    )


def broken_mask(path: Path, kind: str) -> None:
    values = np.zeros((HIGH, WIDE), np.uint8)
    if kind == "size":
        save(path, values[1:])
    elif kind == "deep":
        Image.fromarray(values.astype(np.uint16)).save(path)
    elif kind == "colour":
        save(path, np.dstack([values] * 3))
    elif kind == "jpeg":
        Image.fromarray(values).save(path, "JPEG")
    else:
        path.write_bytes(b"none")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", "40 x 29, its picture 40 x 30"),
        ("deep", "more than 8 bits a pixel; .*save it as 8-bit PNG"),
        ("colour", r"colours without a palette \(RGB\)"),
        ("jpeg", "a JPEG, which changes class numbers"),
        ("none", "not a picture"),
    ],
)
def test_masks_that_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    for name in "abcde":
        save(tmp_path / "images" / f"{name}.jpg", pixels(BOX))
        save(tmp_path / "masks" / f"{name}.png", np.ones((HIGH, WIDE), np.uint8))
    for name in "abcd":
        broken_mask(tmp_path / "masks" / f"{name}.png", kind)
    with pytest.raises(InvalidDataError, match=f"4 masks cannot be used: .*{message}.*and 1 more"):
        load(f"masks:{tmp_path}")
    assert len(data.load(f"masks:{tmp_path}", "calibration", **SAME)) == 5


@pytest.mark.parametrize(
    ("make", "word", "message"),
    [
        (lambda root: None, "voc:{}/none", "not found; expected a folder with JPEGImages"),
        (lambda root: None, "coco:{}/none.json", "not found; expected a JSON file"),
        (lambda root: None, "coco:{}", "is a folder"),
        (lambda root: None, "voc:{}", "expected Annotations/NAME.xml"),
        (lambda root: None, "masks:{}", "expected the folders images and masks"),
        (lambda root: None, "yolo:{}", "expected pictures in"),
        (lambda root: (root / "images").mkdir(), "yolo:{}", "labels not found"),
        (lambda root: (root / "images").mkdir(), "masks:{}", "masks not found"),
        (lambda root: (root / "train/images").mkdir(parents=True), "yolo:{}", "#split=train"),
        (lambda root: (root / "Annotations").mkdir(), "voc:{}", "JPEGImages not found"),
        (lambda root: write(root / "a.xml", xml()), "voc:{}", "no picture has an annotation"),
        (lambda root: coco(root), "coco:{}/set.json#images=none", "none not found; see #images"),
        (lambda root: coco(root), "coco:{}/set.json#exif=left", "exif as upright or stored"),
        (lambda root: coco(root), "coco:{}/set.json#first_label=4", "category ids from 4"),
        (
            lambda root: voc(root, {"a": xml()}),
            "voc:{}",
            "none of 1 annotations has an object",
        ),
        (
            lambda root: (
                [save(root / f"images/a.{each}", pixels()) for each in ("jpg", "png")]
                and (root / "labels").mkdir()
            ),
            "yolo:{}",
            "have one annotation",
        ),
        (
            lambda root: [save(root / "images/a.jpg", pixels()), (root / "labels").mkdir()],
            "yolo:{}",
            "none of 1 pictures has a box",
        ),
        (
            lambda root: [
                voc(root, {"a": xml(("cat", BOX))}),
                write(root / "ImageSets/Main/x.txt", "../../etc/passwd"),
            ],
            "voc:{}#split=x",
            "leads out of the folder",
        ),
    ],
)
def test_places_that_hold_none(
    tmp_path: Path, make: Callable[[Path], Any], word: str, message: str
) -> None:
    make(tmp_path)
    with pytest.raises(EdgekitError, match=message) as caught:
        load(word.format(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "word"),
    [
        (("images", "masks"), "masks:"),
        (("JPEGImages", "SegmentationClass"), "masks:"),
        (("JPEGImages", "SegmentationClass", "Annotations"), "voc:"),
        (("JPEGImages", "Annotations"), "voc:"),
        (("images", "labels"), "yolo:"),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, folders: tuple[str, ...], word: str) -> None:
    for folder in folders:
        save(tmp_path / folder / "a.png", pixels(BOX))
    with pytest.raises(InvalidDataError, match=f"pass it as {word}"):
        load(f"folder:{tmp_path}")
    write(tmp_path / "set.json", "{}")
    with pytest.raises(InvalidOptionError, match="coco:FILE"):
        load(str(tmp_path / "set.json"))


def test_calibration_needs_no_boxes(tmp_path: Path) -> None:
    for word in (
        f"coco:{coco(tmp_path / 'coco', annotations=[])}",
        f"voc:{voc(tmp_path / 'voc', {'a': xml(), 'b': xml()})}",
    ):
        found = data.load(word, "calibration", **SAME)
        assert len(found) == 2 and found.boxes is None


def test_a_calibration_table_may_name_them(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": xml(("cat", BOX))})
    opened = data.open_word(f"voc:{root}", "calibration", read_from=Path("table.json"))
    assert opened.source.count == 1
    assert data.path_of(f"voc:{root}#samples=1") == root
    assert data.path_of("coco:a/b.json#images=c") == Path("a/b.json")


# describe


def test_describe_counts_objects(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    notes = [
        note(1, 7, 3, [1, 1, 20, 20], area=400),
        note(2, 7, 3, [1, 1, 20, 20], area=2000),
        note(3, 7, 90, [0, 0, 40, 30], area=99999, iscrowd=1),
    ]
    done = edgekit("data", "describe", f"coco:{coco(tmp_path, annotations=notes)}")
    about = done.document["description"]["objects"]
    assert about == {
        "boxes": {"cat": 2, "dog": 1},
        "pixels": {},
        "pictures": {"cat": 1, "dog": 1},
        "sizes": {"small": 1, "medium": 1, "large": 1},
        "crowds": 1,
        "void": None,
        "empty": 1,
    }
    assert "without any box" in done.stderr


def test_sheet_draws_boxes(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": xml(("cat", (8, 6, 32, 24)))})
    opened = data.open_word(f"voc:{root}", "calibration")
    survey = describe.survey(opened, pictures=True)
    sheet = np.asarray(Image.open(io.BytesIO(describe.sheet(survey))))
    left, top = 190, 6 + (256 - 180) // 2  # 40 x 30 enlarged by 6 to 240 x 180
    left += (256 - 240) // 2
    blue = np.array([0, 97, 242])
    outline = np.abs(sheet.astype(int) - blue).max(axis=2) < 12
    rows, columns = np.nonzero(outline[top + 36 : top + 144, left : left + 240])
    assert (columns.min(), columns.max()) == (48, 191) and (rows.min(), rows.max()) == (0, 107)


def test_describe_masks_and_arrays(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"{i}.jpg", pixels(BOX))
        values = np.zeros((HIGH, WIDE), np.uint8)
        values[:15] = (0, 2, VOID)[i]
        save(tmp_path / "masks" / f"{i}.png", values)
    survey = describe.survey(data.open_word(f"masks:{tmp_path}", "calibration"), pictures=True)
    about = describe.describe(survey).objects
    assert about is not None
    assert about.pixels == {"0": 80.0, "1": 0.0, "2": 20.0}
    assert about.pictures == {"0": 3, "1": 0, "2": 1}
    assert (about.void, about.empty) == (16.667, 2)
    assert describe.describe(survey).warnings == ("1 classes are in no picture: 1",)
    drawn = Image.open(io.BytesIO(describe.sheet(survey)))
    assert drawn.size[0] > 500
    found = load(f"masks:{tmp_path}")
    again = describe.survey(data.Opened("x", "test", found, None, 0, None, "white"), pictures=True)
    assert describe.describe(again).objects == about
    root = voc(tmp_path / "voc", {"a": xml(("cat", BOX))})
    boxed = load(f"voc:{root}", shape=(80, 80, 3), prepare=preprocessing("unit#letterbox=0"))
    again = describe.survey(data.Opened("x", "test", boxed, None, 0, None, "white"))
    boxes, _, said = describe.objects_of(again)
    assert corners(boxes) == [[10, 18, 30, 50]] and not said


def test_binary_masks_are_named(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", pixels(BOX))
    values = np.zeros((HIGH, WIDE), np.uint8)
    values[:15] = 255
    save(tmp_path / "masks" / "a.png", values)
    assert load(f"masks:{tmp_path}").warnings == (
        "masks show one class only, 0 and void, 255; if it stands for an object, write the number "
        "of its class",
    )
    save(tmp_path / "masks" / "a.png", np.full_like(values, 255))
    with pytest.raises(InvalidDataError, match="all pixels of all masks are void"):
        load(f"masks:{tmp_path}")
    survey = describe.survey(data.open_word(f"masks:{tmp_path}", "calibration"))
    assert "if 255 stands for an object" in describe.describe(survey).warnings[-1]


# Photographs of others.

BCCD = Path("/work/shared/data/bccd/BCCD")


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not here")
def test_blood_cells() -> None:
    heard = Heard()
    found = data.load(f"voc:{BCCD}", "test", shape=(96, 96, 3), progress=heard)
    assert (len(found), len(found.boxes.classes)) == (364, 4886)
    assert np.bincount(found.boxes.classes).tolist() == [361, 4153, 372]
    assert found.class_names == ("Platelets", "RBC", "WBC")
    assert any("2 boxes have no width or no height" in said for said in heard.said)
    part = data.load(f"voc:{BCCD}#split=test", "test", shape=(96, 96, 3))
    assert len(part) == 72
