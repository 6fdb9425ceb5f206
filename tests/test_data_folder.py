import numpy as np
import pytest

from imgnet.config import ConfigError
from imgnet.data.sources.folder import FolderSource, layout_problems


def make_tree(root, tree):
    """Write ``{"train/cat": ["a.jpeg"]}``; each file holds its own path."""
    for folder, names in tree.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(f"{folder}/{name}".encode())
    return root


@pytest.fixture
def pets(tmp_path):
    tree = {
        "train/dog": ["b.JPEG", "a.jpg", "c.Png", "notes.txt", ".hidden.jpg"],
        "train/cat": ["n01_2.jpeg", "n01_10.WEBP"],
        "train/.trash": ["z.jpeg"],
        "val/cat": ["x.jpeg"],
        "val/dog": ["ü y.jpeg"],
    }
    root = make_tree(tmp_path / "pets", tree)
    (root / "train" / "list.txt").write_text("no class")
    (root / "train" / "dog" / "folder.jpeg").mkdir()
    return root


def test_classes_and_files_are_sorted(pets):
    source = FolderSource(pets, "train", 2)
    assert len(source) == 5
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.labels.dtype == np.int64
    files = [source.read(index).decode() for index in range(5)]
    assert files == ["train/cat/n01_10.WEBP", "train/cat/n01_2.jpeg"] + [
        f"train/dog/{name}" for name in ("a.jpg", "b.JPEG", "c.Png")
    ]
    assert source.describe(3) == str(pets / "train/dog/b.JPEG")


def test_names_may_hold_any_letters(pets):
    source = FolderSource(pets, "val", 2)
    assert source.read(1).decode() == "val/dog/ü y.jpeg"
    assert source.describe(1).endswith("ü y.jpeg")


def test_links_are_followed(pets, tmp_path):
    linked = tmp_path / "linked"
    for split in ("train", "val"):
        (linked / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (linked / split / name).symlink_to(pets / split / name)
    assert len(FolderSource(linked, "train", 2)) == 5


def test_labels_agree_with_torchvision(pets):
    datasets = pytest.importorskip("torchvision.datasets")
    source = FolderSource(pets, "val", 2)
    theirs = datasets.ImageFolder(str(pets / "val"))
    ours = [(source.describe(index), int(label)) for index, label in enumerate(source.labels)]
    assert ours == theirs.samples


def test_a_missing_folder_is_named(tmp_path):
    assert layout_problems(tmp_path / "none", 2) == [
        f"data.root={tmp_path / 'none'} is not a folder; it must hold train/<class>/* and val/<class>/*, "
        "as ImageNet has them. Set data.root=<path>"
    ]


def test_missing_splits_are_named(tmp_path):
    train, val = layout_problems(tmp_path, 2)
    assert f"data.root={tmp_path} has no folder train/" in train
    assert f"data.root={tmp_path} has no folder val/" in val


def test_a_wrong_number_of_classes_is_told_with_both_numbers(pets):
    assert layout_problems(pets, 10) == [
        f"{pets}/train has 2 class folders, but data.num_classes=10",
        f"{pets}/val has 2 class folders, but data.num_classes=10",
    ]


def test_classes_of_one_split_only_are_named(tmp_path):
    tree = {"train/a": ["1.png"], "train/b": ["1.png"], "val/a": ["1.png"], "val/c": ["1.png"]}
    root = make_tree(tmp_path / "mixed", tree)
    assert layout_problems(root, 2) == [
        f"data.root={root} has 1 classes in train/ but not in val/: b",
        f"data.root={root} has 1 classes in val/ but not in train/: c",
    ]
    with pytest.raises(ConfigError, match="in train/ but not in val/: b"):
        FolderSource(root, "train", 2)


def test_long_lists_of_classes_are_cut(tmp_path):
    root = make_tree(tmp_path / "many", {f"train/c{number}": ["1.png"] for number in range(9)})
    (root / "val").mkdir()
    assert any("9 classes in train/ but not in val/: c0, c1, c2, ..." in line for line in layout_problems(root, 9))


def test_a_class_without_images_is_named(tmp_path):
    tree = {"train/a": ["1.png"], "train/b": ["1.gif"], "val/a": ["1.png"], "val/b": ["1.png"]}
    root = make_tree(tmp_path / "gaps", tree)
    with pytest.raises(ConfigError, match=r"train has 1 classes without an image \(.jpeg, .jpg, .png, .webp\): b"):
        FolderSource(root, "train", 2)
    assert len(FolderSource(root, "val", 2)) == 2


def test_the_table_of_files_is_small(tmp_path):
    names = [f"n01440764_{number:05d}.JPEG" for number in range(500)]
    root = make_tree(tmp_path / "large", {"train/n01440764": names, "val/n01440764": names[:1]})
    source = FolderSource(root, "train", 1)
    held = len(source._names) + source._ends.nbytes + source.labels.nbytes
    assert held / len(source) < 40
    assert source.read(499).decode() == "train/n01440764/n01440764_00499.JPEG"
