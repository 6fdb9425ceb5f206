"""Published weights are scored as their publishers do: torchvision's and timm's own transforms are the reference."""

import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.data.config import resolve_data_config
from timm.models import get_pretrained_cfg
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from imgnet.checkpoint.cli import average
from imgnet.checkpoint.export import export_model, read_about
from imgnet.config import ConfigError, DataBackend, Interpolation, Mode, RunConfig
from imgnet.data.checks import dali_is_installed
from imgnet.data.loader import build_eval_loader
from imgnet.data.tools.synthesize import picture
from imgnet.launch.checks import check
from imgnet.launch.sweep import _keep_what_was_typed
from imgnet.models.build import SmallCnn
from imgnet.models.names import INCEPTIONS
from imgnet.published import (
    PREPROCESSING,
    preprocessing_of,
    problems,
    published,
    said,
    shown,
)
from imgnet.rundir import read_json, write_run
from imgnet.runtime import Placement, Runtime, joined, prefer_loopback
from imgnet.train import run
from tests.commands import NOT_MEASURED
from tests.composing import compose_plain, composed
from tests.distributed.harness import NOBODY_WATCHES

TORCHVISION = ["resnet50", "efficientnet_v2_l", "swin_t"]
TIMM = ["vit_base_patch16_224", "resnet50.a1_in1k", "convnext_base.fb_in22k_ft_in1k_384"]
CPU = torch.device("cpu")


def evaluating(name: str, *overrides: str) -> RunConfig:
    return composed("mode=evaluate", f"model.name={name}", "model.pretrained=true", *overrides)


def of_torchvision(name: str) -> dict[str, Any]:
    """What torchvision's own transform says of itself."""
    wanted = models.get_model_weights(name)["DEFAULT"].transforms()
    return {
        "eval_px": wanted.crop_size[0],
        "eval_resize_px": wanted.resize_size[0],
        "eval_squash": False,
        "interpolation": Interpolation(wanted.interpolation.value),
        "antialias": wanted.antialias,
        "mean": wanted.mean,
        "std": wanted.std,
    }


def of_timm(data_config: dict[str, Any]) -> dict[str, Any]:
    """What timm makes of its configuration: the steps of its own transform."""
    resize, crop, _, normalize = create_transform(**data_config, is_training=False).transforms
    assert isinstance(resize, transforms.Resize)
    assert isinstance(crop, transforms.CenterCrop)
    assert isinstance(normalize, transforms.Normalize)
    squash = isinstance(resize.size, Sequence)
    sides = set(resize.size) if squash else {resize.size}
    assert len(sides) == len(set(crop.size)) == 1
    return {
        "eval_px": crop.size[0],
        "eval_resize_px": sides.pop(),
        "eval_squash": squash,
        "interpolation": Interpolation(resize.interpolation.value),
        "antialias": True,  # as Pillow always does
        "mean": pytest.approx(normalize.mean.tolist()),
        "std": pytest.approx(normalize.std.tolist()),
    }


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_are_shown_what_their_transform_says(name: str) -> None:
    data = shown(evaluating(name))
    assert {key: getattr(data, key) for key in PREPROCESSING} == of_torchvision(name)


@pytest.mark.parametrize("name", TIMM)
def test_timms_weights_are_shown_what_timm_resolves_for_the_model(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    wanted = resolve_model_data_config(model)
    data = shown(evaluating(name))
    assert {key: getattr(data, key) for key in PREPROCESSING} == of_timm(wanted)
    assert (3, data.eval_px, data.eval_px) == wanted["input_size"]
    assert data.eval_resize_px == int(data.eval_px / wanted["crop_pct"])
    assert (data.mean, data.std) == (list(wanted["mean"]), list(wanted["std"]))


def test_the_same_holds_for_every_classifier_that_torchvision_publishes() -> None:
    names = models.list_models(module=models)
    assert len(names) > 70
    for name in names:
        brought = published(name)
        itself = {"mean": [0.5] * 3, "std": [0.5] * 3} if name in INCEPTIONS else {}  # tests/test_models_build.py
        assert brought.values == of_torchvision(name) | itself, name
        assert brought.num_classes == 1000, name


def test_the_same_holds_for_every_classifier_of_imagenet_that_timm_publishes() -> None:
    names = [name for name in timm.list_models(pretrained=True) if name not in models.list_models(module=models)]
    of_imagenet = [name for name in names if get_pretrained_cfg(name).num_classes == 1000]
    assert len(of_imagenet) > 1000
    for name in of_imagenet:
        wanted = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
        assert published(name).values == of_timm(wanted), name
        assert published(name).source == f"timm's {name}"


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand classes, of which each validation image is one of five real JPEGs."""
    root = tmp_path_factory.mktemp("imagenet")
    for number, (width, height) in enumerate([(500, 375), (375, 500), (260, 240), (96, 128), (640, 333)]):
        encoded = io.BytesIO()
        picture((9, number), width, height).save(encoded, "JPEG", quality=92)
        (root / f"{number}.jpeg").write_bytes(encoded.getvalue())
    for split in ("train", "val"):
        for number in range(1000):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            (folder / "0.jpeg").symlink_to(root / f"{number % 5}.jpeg")
    return root


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, DataBackend.torchvision) for name in (*TORCHVISION, *TIMM)),
        *(
            pytest.param(
                name,
                DataBackend.dali,
                marks=pytest.mark.skipif(not dali_is_installed(), reason="DALI is not installed"),
            )
            for name in (TORCHVISION[0], TIMM[2])
        ),
    ],
)
def test_a_model_is_shown_the_pixels_of_its_publisher(name: str, backend: DataBackend, imagenet: Path) -> None:
    data = replace(shown(evaluating(name, f"data.root={imagenet}")), backend=backend, num_workers=0)
    loader = build_eval_loader(data, local_batch_size=5, channels_last=True, worker=Runtime(0, 1, 0, 1, CPU, 1))
    batch = next(iter(loader.batches()))
    loader.close()
    if name in TORCHVISION:
        transform = models.get_model_weights(name)["DEFAULT"].transforms()
    else:
        wanted = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
        transform = create_transform(**wanted, is_training=False)
    folder = ImageFolder(imagenet / "val", transform=transform)
    levels = torch.tensor(data.std).view(3, 1, 1) * 255
    for seen, (expected, _) in zip(batch.images, (folder[number] for number in range(5)), strict=True):
        difference = ((seen - expected) * levels).abs()
        # Decoded to the same bits, resized by torch's code instead of Pillow's (tests/test_data_view.py).
        assert (difference > 1.01).float().mean() < 1e-4
        assert (difference > 0.01).float().mean() < 0.3


def test_what_is_kept_is_kept_and_said() -> None:
    plain, config = evaluating("efficientnet_v2_l"), evaluating("efficientnet_v2_l", "data.keep=[mean,eval_px]")
    assert said(plain) == (
        "images as torchvision's efficientnet_v2_l (IMAGENET1K_V1) wants them: data.eval_px=480 "
        "data.eval_resize_px=480 data.eval_squash=false data.interpolation=bicubic data.antialias=true "
        "data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]"
    )
    assert (shown(config).eval_px, shown(config).eval_resize_px) == (224, 480)
    assert str(said(config)).endswith(
        "data.std=[0.5,0.5,0.5]; as you set it: data.eval_px=224 (not 480) data.mean=[0.485,0.456,0.406] (not "
        "[0.5,0.5,0.5])"
    )


def test_training_takes_over_colours_and_leaves_sizes() -> None:
    config = evaluating("vit_base_patch16_224", "mode=train", "data.num_classes=10")
    data = shown(config)
    assert (data.mean, data.std, data.interpolation) == ([0.5] * 3, [0.5] * 3, Interpolation.bicubic)
    assert (data.train_px, data.eval_px, data.eval_resize_px) == (176, 224, 256)
    assert str(said(config)).startswith(
        "images as timm's vit_base_patch16_224.augreg2_in21k_ft_in1k wants them: data.int"
    )


def test_without_weights_nothing_is_changed_and_nothing_said() -> None:
    config = composed()
    assert shown(config) is config.data
    assert said(config) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model.name": "tf_efficientnetv2_s.in21k"}, "timm's tf_efficientnetv2_s.in21k has 21843 classes; data.num_"),
        (
            {"model.name": "resnet50.a1_in1k", "data.num_classes": 10},
            "resnet50.a1_in1k has 1000 classes; data.num_clas",
        ),
        ({"model.name": "resnet50", "data.num_classes": 10}, "torchvision's resnet50 (IMAGENET1K_V2) has 1000 classes"),
        ({"model.name": "vit_giant_patch14_224"}, "there are no published weights of vit_giant_patch14_224"),
        ({"model.name": "resnet50", "data.keep": "[eval_px]", "data.eval_px": 240}, "data.eval_px=240 must not exceed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, object], line: str) -> None:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = composed("mode=evaluate", "model.pretrained=true", *overrides)
    with pytest.raises(ConfigError) as refused:
        shown(config)
    (problem,) = refused.value.problems
    assert line in problem


def test_a_conflict_with_a_kept_key_is_known_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in NOT_MEASURED.items():  # in the process that asks torchvision
        monkeypatch.setenv(variable, value)
    (line,) = problems(evaluating("resnet50", "data.keep=[eval_px]", "data.eval_px=240", "data.eval_resize_px=300"))
    assert line.startswith("data.eval_px=240 must not exceed data.eval_resize_px=232")
    assert line.endswith("(of torchvision's resnet50 (IMAGENET1K_V2))")
    assert problems(evaluating("resnet50", "data.keep=[eval_px]", "data.eval_px=200")) == []
    (unknown,) = problems(evaluating("resnet50", "data.keep=[eval_px,colour]"))
    assert unknown.startswith("data.keep names colour; known: eval_px, ")


def test_nobody_is_asked_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    for name in ("resnet50", "resnet101", "resnet50.a1_in1k"):
        assert problems(evaluating(name)) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["model.name=tf_efficientnetv2_s.in21k"],
            "tf_efficientnetv2_s.in21k have 21843 classes; data.num_classes=1000",
        ),
        (["model.name=resnet50.a1_in1k", "data.num_classes=10"], "resnet50.a1_in1k have 1000 classes; data.num_class"),
        (["model.name=resnet50", "data.num_classes=10"], "resnet50 have 1000 classes; data.num_classes=10"),
    ],
)
def test_weights_of_other_classes_are_refused_before_anything_starts(words: list[str], line: str) -> None:
    config = composed("mode=evaluate", "model.pretrained=true", "data=synthetic", *words)
    with pytest.raises(ConfigError) as refused:
        check(config)
    (problem,) = refused.value.problems
    assert line in problem


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["model=resnet50", "seed=1"], []),
        (["data.eval_px=240", "+data.mean=[0.5,0.5,0.5]", "++data.antialias=true", "data.root=/data.std"],
         ["antialias", "eval_px", "mean"]),
        (["data.keep=[std]", "data.train_px=128", "data.eval_px=128"], ["eval_px", "std"]),
    ],
)  # fmt: skip
def test_what_is_typed_is_kept(typed: list[str], kept: list[str]) -> None:
    weights = [word for word in typed if word.startswith("data.keep")]
    config = compose_plain("mode=evaluate", "model.pretrained=true", *weights)
    _keep_what_was_typed(config, typed)
    assert list(config.data.keep) == kept
    without = compose_plain()
    _keep_what_was_typed(without, typed)
    assert list(without.data.keep) == []


def carry_out(config: RunConfig, run_dir: Path) -> None:
    """A run with one worker, which is this process."""
    for folder in ("checkpoints", "logs"):
        (run_dir / folder).mkdir(parents=True)
    write_run(run_dir, status="running")
    prefer_loopback()
    with joined(Placement(0, 1, 0, 1), use_gpu=False, store_file=run_dir / "store") as runtime:
        run(config, runtime, run_dir, Event(), NOBODY_WATCHES)


def test_a_run_scores_published_weights_and_keeps_what_it_showed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = models.resnet18().eval()
    weights = models.ResNet18_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / Path(weights.url).name)
    config = evaluating(
        "resnet18", "data=synthetic", "data.num_val=6", "data.eval_px=64", "data.eval_resize_px=64",
        "evaluate_precision=fp32", "evaluate_label_smoothing=0.1",
    )  # fmt: skip
    carry_out(config, tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["images"] == said(config)
    data = shown(config)
    assert data.eval_px == 224
    loader = build_eval_loader(data, local_batch_size=6, channels_last=False, worker=Runtime(0, 1, 0, 1, CPU, 1))
    (batch,) = loader.batches()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.targets, label_smoothing=0.1)
    assert read_json(tmp_path / "run" / "summary.json")["val_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_an_exported_model_is_scored_on_images_as_it_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    data = replace(composed("data=digits").data, mean=[0.5] * 3, interpolation=Interpolation.bicubic)
    export_model(path, SmallCnn(10), {"preprocessing": preprocessing_of(data)})
    overrides = ("mode=evaluate", "model=small_cnn", "data=digits", f"model.weights={path}")
    config = composed(*overrides, "data.keep=[std]", "data.std=[0.2,0.2,0.2]")
    assert problems(config) == []
    assert shown(config) == replace(data, std=[0.2] * 3, keep=["std"])
    assert f"images as model.weights={path} wants them: " in str(said(config))
    same = replace(config, data=replace(data, keep=[]))
    assert said(same) is None


def test_a_run_notes_its_images_in_what_it_exports(digits_root: Path, tmp_path: Path) -> None:
    words = ["+experiments=quickstart", "topology=allreduce", f"data.root={digits_root}", "epochs=3", "max_steps=3"]
    config = composed(*words, "data.mean=[0.4,0.4,0.4]", "global_batch_size=700")
    path = tmp_path / "run" / "checkpoints" / "final.safetensors"
    scoring = replace(composed(*words), mode=Mode.evaluate, model=replace(config.model, weights=str(path)))
    carry_out(config, tmp_path / "run")
    carry_out(scoring, tmp_path / "scored")
    assert read_about(path)["preprocessing"] == preprocessing_of(config.data)
    average(tmp_path / "run", tmp_path / "average.safetensors")
    assert read_about(tmp_path / "average.safetensors")["preprocessing"] == preprocessing_of(config.data)
    trained, scored = (read_json(tmp_path / name / "summary.json") for name in ("run", "scored"))
    assert scored["val_loss"] == pytest.approx(trained["val_loss"], rel=1e-6)


def test_the_papers_recipe_trains_on_a_laptop(digits_root: Path, tmp_path: Path) -> None:
    words = ["data=digits", "model=small_cnn", "global_batch_size=64", "epochs=6", "max_steps=2", "compile=false"]
    carry_out(composed("+experiments=paper", *words, f"data.root={digits_root}"), tmp_path / "run")
    about = read_about(tmp_path / "run" / "checkpoints" / "final.safetensors")
    assert about["step"] == 2
    assert about["preprocessing"]["antialias"] is False
    assert about["val_loss"] == pytest.approx(2.3, abs=0.3)


@pytest.mark.parametrize(
    "noted",
    [
        {"eval_px": None},
        {"eval_px": "many"},
        {"interpolation": "${oc.env:HOME}"},
        {"eval_px": -1},
        {"std": [0.0] * 3},
        {"mean": [float("nan")] * 3},
        [],
        {},
    ],
)
def test_a_header_of_nonsense_is_refused(noted: Any, tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    values = preprocessing_of(composed("data=digits").data) | noted if noted else noted
    tensors = {name: value.contiguous() for name, value in SmallCnn(10).state_dict().items()}
    save_file(tensors, path, metadata={"imgnet": json.dumps({"preprocessing": values})})
    config = composed("mode=evaluate", "model=small_cnn", "data=digits", f"model.weights={path}")
    (line,) = problems(config)
    assert str(path) in line
    with pytest.raises(ConfigError):
        shown(config)
