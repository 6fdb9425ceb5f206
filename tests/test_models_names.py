"""Names of models as they are known without torchvision and timm, held against what both say of themselves."""

import subprocess
import sys

import pytest

from imgnet.models.names import library_of, pretrained_of, timm_files, timm_weights, torchvision_names, unknown

TYPOS = {
    "resnet51": "'resnet50'",
    "resnet_50": "'resnet50'",
    "ResNet50": "'resnet50'",
    "resnt18": "'resnet18'",
    "resnext50_32x4": "'resnext50_32x4d'",
    "wide_resnet50": "'wide_resnet50_2'",
    "densnet121": "'densenet121'",
    "efficientnet-b0": "'efficientnet_b0'",
    "efficentnet_b4": "'efficientnet_b4'",
    "mobilenetv3_smal_050": "'mobilenetv3_small_050'",
    "mobilnet_v2": "'mobilenet_v2'",
    "convnext-tiny": "'convnext_tiny'",
    "vgg16bn": "'vgg16_bn'",
    "vit_b16": "'vit_b_16'",
    "vit_base_patch16-224": "'vit_base_patch16_224'",
    "vit_smal_patch16_224": "'vit_small_patch16_224'",
    "swin_tiny_patch4_window7_22": "'swin_tiny_patch4_window7_224'",
    "regnet_y_16g": "'regnet_y_16gf'",
    "smal_cnn": "'small_cnn'",
    "inceptionv3": "'inception_v3'",
    "vit_base_patch16_224.augreg_in21": "'augreg_in21k'",
    "resnet50.a1_in1": "'a1_in1k'",
}


@pytest.mark.parametrize(("typo", "meant"), TYPOS.items())
def test_a_typo_is_answered_with_what_was_meant(typo: str, meant: str) -> None:
    assert library_of(typo) is None
    line = unknown(typo)
    assert line.startswith(f"model.name={typo}: ")
    assert meant in line.partition("did you mean ")[2]


@pytest.mark.parametrize("name", ["", "x", "resnet50.", "tv_resnet50.a1_in1k", "hf-hub:timm/resnet50", "timm/resnet50"])
def test_what_is_near_to_nothing_is_no_name(name: str) -> None:
    assert library_of(name) is None
    assert unknown(name).startswith(f"model.name={name}: ")


def test_the_names_are_those_that_the_libraries_list() -> None:
    import timm
    import torchvision
    from timm.models._registry import get_deprecated_models

    assert torchvision_names() == set(torchvision.models.list_models(module=torchvision.models))
    assert set(timm_files()) == set(timm.list_models())
    with_tags = {*timm.list_models(include_tags=True), *timm.list_pretrained()}
    earlier = {old for old, new in get_deprecated_models().items() if new}
    assert {name for name in with_tags | earlier if library_of(name) is None} == set()


def test_timm_is_read_as_it_says_of_itself() -> None:
    """Of every architecture and every tag: whether there are weights, their classes and the size of their images."""
    import timm
    from timm.models._registry import get_pretrained_cfg, is_model_pretrained

    names = {name for arch in timm_files() for name in (arch, *(f"{arch}.{tag}" for tag in timm_weights(arch) if tag))}
    assert len(names) > 2000
    assert {name for name in names if "." in name} == {n for n in timm.list_models(include_tags=True) if "." in n}
    for name in names:
        ours, theirs = pretrained_of(name), get_pretrained_cfg(name)
        assert ours is not None
        assert theirs is not None
        found = (ours.exist, ours.num_classes, ours.px, ours.fixed_px)
        wanted = (is_model_pretrained(name), theirs.num_classes, theirs.input_size[-1], theirs.fixed_input_size)
        assert found == wanted, name


def test_names_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from imgnet.models.names import library_of, unknown\n"
        "assert library_of('vit_base_patch16_224.augreg_in21k') == 'timm' and library_of('resnet50') == 'torchvision'\n"
        "print(unknown('resnet51')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
