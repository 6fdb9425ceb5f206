import subprocess
import sys
from dataclasses import replace

import pytest

from imgnet.config import DataBackend, DataConfig, DataKind, Interpolation
from imgnet.data.checks import chosen_backend, dali_is_installed, known_num_train, problems
from imgnet.data.digits import NUM_TRAIN
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
        ({"train_px": 0}, "data.train_px=0 must be 1 or more pixels"),
        ({"eval_px": -1}, "data.eval_px=-1 must be 1 or more pixels"),
        (
            {"eval_px": 41},
            "data.eval_px=41 must not exceed data.eval_resize_px=40, the shorter side of the image that it is cut from",
        ),
        ({"num_classes": 1}, "data.num_classes=1 must be 2 or more"),
        ({"crop_attempts": 0}, "data.crop_attempts=0 must be from 1 to 1000"),
        ({"crop_attempts": 1001}, "data.crop_attempts=1001 must be from 1 to 1000"),
        (
            {"antialias": False, "interpolation": Interpolation.bicubic},
            "data.antialias=false is for data.interpolation=bilinear; what it means with bicubic differs between "
            "libraries",
        ),
        (
            {"num_workers": -1},
            "data.num_workers=-1 must be 0 (decode in the training process) or more, or null",
        ),
        (
            {"crop_scale": [0.0, 1.0]},
            "data.crop_scale=[0,1] must be two shares of the area, 0 < smallest <= largest <= 1",
        ),
        (
            {"crop_scale": [0.5, 0.08]},
            "data.crop_scale=[0.5,0.08] must be two shares of the area, 0 < smallest <= largest <= 1",
        ),
        (
            {"crop_scale": [0.5]},
            "data.crop_scale=[0.5] must be two shares of the area, 0 < smallest <= largest <= 1",
        ),
        (
            {"crop_ratio": [0.75, float("nan")]},
            "data.crop_ratio=[0.75,nan] must be two ratios of width to height, 0 < smallest <= largest",
        ),
        (
            {"crop_ratio": [-1.0, 1.0]},
            "data.crop_ratio=[-1,1] must be two ratios of width to height, 0 < smallest <= largest",
        ),
        (
            {"backend": DataBackend.torchvision},
            "data.backend=torchvision decodes images, and data.kind=synthetic has none; leave it out",
        ),
        ({"max_bad_images": -1}, "data.max_bad_images=-1 must be 0 or more"),
        ({"stage_timeout_min": 0}, "data.stage_timeout_min=0 must be 1 or more minutes"),
        (
            {"stage_to": "/ssd"},
            "data.stage_to copies shards, and data.kind=synthetic has none; "
            "write shards with: imgnet data shard <folder of images> <shards> --num-shards N",
        ),
        ({"flip_probability": 1.5}, "data.flip_probability=1.5 must be from 0 to 1"),
        ({"mean": [0.5]}, "data.mean=[0.5] must be three numbers: red, green, blue"),
        ({"std": [0.5, 0.5, 0.0]}, "data.std=[0.5,0.5,0] must be three numbers above 0: red, green, blue"),
        (
            {"num_train": None},
            "data.num_train=null must be 1 or more: data.kind=synthetic has as many images as it is told",
        ),
        ({"num_val": 0}, "data.num_val=0 must be 1 or more: data.kind=synthetic has as many images as it is told"),
    ],
)
def test_each_problem_names_key_value_and_remedy(changes, line):
    assert problems(replace(SYNTHETIC, **changes)) == [line]


def test_all_problems_are_told_at_once():
    assert len(problems(replace(SYNTHETIC, train_px=0, std=[], num_val=None, num_workers=-3))) == 4


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
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
    assert problems(replace(FOLDER, root=str(tmp_path), num_classes=2)) == []
    assert problems(replace(FOLDER, root=str(tmp_path), num_classes=3)) == [
        f"{tmp_path}/train has 2 class folders, but data.num_classes=3",
        f"{tmp_path}/val has 2 class folders, but data.num_classes=3",
    ]


def test_digits_have_ten_classes_and_a_folder_of_their_own(tmp_path):
    assert problems(replace(DIGITS, num_classes=1000)) == ["data.num_classes=1000 must be 10 with data.kind=digits"]
    assert problems(replace(DIGITS, root=str(tmp_path))) == [
        f"data.root={tmp_path} exists and does not hold the digits: remove it, or name a new folder"
    ]


def test_the_number_of_training_images_is_known_where_it_can_be():
    assert known_num_train(DIGITS) == NUM_TRAIN
    assert known_num_train(SYNTHETIC) == 100
    assert known_num_train(FOLDER) is None


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
