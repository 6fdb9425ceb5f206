import hashlib
import io
import multiprocessing

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from imgnet.data.sources import digits
from imgnet.data.sources.folder import FolderSource


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.ensure_digits(folder)
    return folder


def test_every_digit_is_in_one_of_the_two_parts(root):
    numbers = {}
    for split in ("train", "val"):
        source = FolderSource(root, split, 10)
        numbers[split] = [int(source.describe(index)[-9:-5]) for index in range(len(source))]
        assert (load_digits().target[numbers[split]] == source.labels).all()
    assert len(numbers["train"]) == digits.NUM_TRAIN
    assert len(numbers["val"]) == digits.NUM_VAL
    assert sorted(numbers["train"] + numbers["val"]) == list(range(1797))


def test_the_split_is_stratified_and_fixed():
    labels = load_digits().target
    mask = digits.validation_mask(labels)
    shares = np.bincount(labels[mask]) - np.bincount(labels) / 5
    assert np.abs(shares).max() < 1
    numbers = np.flatnonzero(mask).astype(np.int64)
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == "6708f8ccc741cc5f"


def test_the_files_are_the_digits(root):
    source = FolderSource(root, "val", 10)
    for index in range(0, len(source), 20):
        image = Image.open(io.BytesIO(source.read(index)))
        assert (image.format, image.size) == ("JPEG", (32, 32))
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float) * 16 / 255
        original = load_digits().images[int(source.describe(index)[-9:-5])]
        assert np.abs(small - original).mean() < 1  # of 16 grey levels
        assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.97


def test_a_second_call_leaves_the_folder_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    digits.ensure_digits(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_processes_that_write_at_once_leave_one_folder(tmp_path):
    target = tmp_path / "new" / "digits"
    processes = [
        multiprocessing.get_context("fork").Process(target=digits.ensure_digits, args=(target,)) for _ in "123"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in target.parent.iterdir()] == ["digits"]
    assert len(FolderSource(target, "train", 10)) == digits.NUM_TRAIN


def test_the_loser_of_the_race_uses_the_winners_folder(tmp_path, root, monkeypatch):
    target = tmp_path / "digits"

    def write_while_another_wins(folder):
        folder.mkdir()
        (folder / "late").touch()
        target.mkdir()
        (target / "first").touch()

    monkeypatch.setattr(digits, "_write", write_while_another_wins)
    digits.ensure_digits(target)
    assert [path.name for path in tmp_path.rglob("*")] == ["digits", "first"]


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def write_some(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write", write_some)
    with pytest.raises(KeyboardInterrupt):
        digits.ensure_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        digits.ensure_digits(tmp_path / "file" / "digits")
