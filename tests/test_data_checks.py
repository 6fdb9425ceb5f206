import subprocess
import sys
from dataclasses import replace

import pytest

from imgnet.config import DataBackend, DataConfig, DataKind, Interpolation
from imgnet.data.checks import batch_problems, chosen_backend, dali_is_installed, problems
from imgnet.data.sources.digits import NUM_TRAIN
from tests.commands import ROOT

SYNTHETIC = DataConfig(
    name="synthetic",
    kind=DataKind.synthetic,
    num_classes=10,
    train_px=32,
    eval_px=32,
    eval_resize_px=40,
    mean=[0.5, 0.5, 0.5],
    std=[0.5, 0.5, 0.5],
    num_train=100,
    num_val=50,
)
DIGITS = replace(SYNTHETIC, kind=DataKind.digits, root="data/none-yet", num_train=None, num_val=None)
FOLDER = replace(DIGITS, kind=DataKind.folder, root="/no/such/folder")


def test_nothing_is_wrong_with_good_data():
    assert problems(SYNTHETIC) == []
    assert problems(DIGITS) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"eval_px": 41},
            "data.eval_px=41 must not exceed data.eval_resize_px=40, the shorter side of the image that it is cut from",
        ),
        (
            {"antialias": False, "interpolation": Interpolation.bicubic},
            "data.antialias=false is for data.interpolation=bilinear; what it means with bicubic differs between "
            "libraries",
        ),
        ({"crop_scale": [0.5, 0.08]}, "data.crop_scale=[0.5,0.08] must be the smallest, then the largest"),
        ({"crop_ratio": [2.0, 1.0]}, "data.crop_ratio=[2,1] must be the smallest, then the largest"),
        (
            {"backend": DataBackend.torchvision},
            "data.backend=torchvision decodes images, and data.kind=synthetic has none; leave it out",
        ),
        (
            {"stage_to": "/ssd"},
            "data.stage_to copies shards, and data.kind=synthetic has none; "
            "write shards with: imgnet data shard <folder of images> <shards> --num-shards N",
        ),
        (
            {"num_train": None},
            "data.num_train=null must be a number: data.kind=synthetic has as many images as it is told",
        ),
    ],
)
def test_each_problem_names_key_value_and_remedy(changes, line):
    assert problems(replace(SYNTHETIC, **changes)) == [line]


def test_all_problems_are_told_at_once():
    assert len(problems(replace(SYNTHETIC, eval_px=50, crop_scale=[1.0, 0.1], num_val=None))) == 3


def test_counts_are_for_synthetic_images():
    (line,) = problems(replace(DIGITS, num_train=5))
    assert line == "data.num_train=5 is for data.kind=synthetic only; data.kind=digits counts its files"


def test_a_root_is_needed_and_explained():
    assert problems(replace(DIGITS, root=None)) == [
        "data.root is not set, but data.kind=digits needs a folder; "
        "the digits are written there once, such as data.root=data/digits"
    ]
    assert problems(replace(FOLDER, root=None)) == [
        "data.root is not set, but data.kind=folder needs a folder; "
        "it must hold train/<class>/* and val/<class>/*, as ImageNet has them"
    ]


def test_a_missing_folder_is_refused():
    (line,) = problems(FOLDER)
    assert line.startswith("data.root=/no/such/folder is not a folder")


def test_the_classes_of_a_folder_are_counted(tmp_path):
    folder = images_in(tmp_path)
    assert problems(folder) == []
    assert problems(replace(folder, num_classes=4)) == [
        f"{tmp_path}/train has 3 class folders, but data.num_classes=4",
        f"{tmp_path}/val has 3 class folders, but data.num_classes=4",
    ]


def test_digits_have_ten_classes_and_a_folder_of_their_own(tmp_path):
    assert problems(replace(DIGITS, num_classes=1000)) == ["data.num_classes=1000 must be 10 with data.kind=digits"]
    assert problems(replace(DIGITS, root=str(tmp_path))) == [
        f"data.root={tmp_path} exists and does not hold the digits: remove it, or name a new folder"
    ]


def images_in(root, **num_images):
    """A folder of three classes in both splits, with so many empty files in each of its classes."""
    for split in ("train", "val"):
        for name, number in {"a": 1, "b": 1, "c": 1, **num_images}.items():
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                (root / split / name / f"{index}.jpeg").touch()
    return replace(FOLDER, root=str(root), num_classes=3)


def test_a_class_without_an_image_is_refused(tmp_path):
    assert problems(images_in(tmp_path / "whole")) == []
    assert problems(images_in(tmp_path / "holes", b=0)) == [
        f"{tmp_path}/holes/{split} has 1 classes without an image (.jpeg, .jpg, .png, .webp): b"
        for split in ("train", "val")
    ]


def test_a_batch_has_no_more_images_than_there_are(tmp_path):
    folder = images_in(tmp_path, a=5)
    known = [(DIGITS, NUM_TRAIN), (SYNTHETIC, 100), (folder, 7)]
    for config, num_train in known:
        assert list(batch_problems(config, num_train)) == []
        (line,) = batch_problems(config, num_train + 1)
        assert line.startswith(f"global_batch_size={num_train + 1} is more than the {num_train} training images")
    assert list(batch_problems(FOLDER, 10)) == [], "what is wrong with the folder itself is said elsewhere"


def test_what_only_the_machine_of_the_workers_knows_is_asked_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_DISK", raising=False)
    shards = replace(FOLDER, kind=DataKind.shards, stage_to="$NO_SUCH_DISK/x")
    assert "NO_SUCH_DISK" not in "".join(problems(shards))
    assert problems(shards, on_this_machine=True)[0].startswith(
        "data.stage_to=$NO_SUCH_DISK/x: the variable NO_SUCH_DISK is not set on "
    )
    (tmp_path / "file").touch()
    below_a_file = replace(DIGITS, root=f"{tmp_path}/file/digits")
    assert problems(below_a_file) == []
    assert problems(below_a_file, on_this_machine=True) == [
        f"data.root={tmp_path}/file/digits cannot be made: {tmp_path}/file is no folder that you may write to"
    ]


def test_a_root_that_cannot_be_looked_at_is_refused():
    (line,) = problems(replace(FOLDER, root="x" * 5000))
    assert line.endswith(": File name too long")


def test_shards_are_staged_to_a_place_of_the_node(tmp_path):
    shards = replace(FOLDER, kind=DataKind.shards, root=str(tmp_path), stage_to="ssd")
    first, second = problems(shards)
    assert first == "data.stage_to=ssd must be an absolute path, or begin with a variable such as $TMPDIR"
    assert second.startswith(f"data.root={tmp_path} holds no manifest.json, so no whole shards; ")


def test_a_folder_of_shards_is_recognised(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (line,) = problems(replace(FOLDER, root=str(tmp_path)))
    assert line == f"data.root={tmp_path} holds shards: set data.kind=shards"


def test_dali_is_chosen_where_it_is_installed():
    expected = DataBackend.dali if dali_is_installed() else DataBackend.torchvision
    assert chosen_backend(FOLDER) is expected
    assert chosen_backend(replace(FOLDER, backend=DataBackend.torchvision)) is DataBackend.torchvision


def test_dali_is_asked_for_where_it_is_not_installed(tmp_path):
    """A Python that finds the packages of this one, DALI excepted."""
    code = (
        "import sys; sys.path = [path for path in sys.path if 'nvidia' not in path]\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('nvidia'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from dataclasses import replace\n"
        "from imgnet.config import DataBackend\n"
        "from imgnet.data.checks import chosen_backend, problems\n"
        "from tests.test_data_checks import FOLDER\n"
        "assert chosen_backend(FOLDER) is DataBackend.torchvision\n"
        "print(problems(replace(FOLDER, backend=DataBackend.dali))[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == (
        "data.backend=dali, but DALI is not installed: pip install 'imgnet[dali]', or set data.backend=auto\n"
    ), done.stderr


def test_checks_do_not_wait_for_torch():
    code = "import sys, imgnet.data.checks; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
