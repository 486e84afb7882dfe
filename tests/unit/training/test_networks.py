"""The networks' contract, their parity with timm, and the refusal of weights that fit only partly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.layers.drop import DropPath
from torch import Tensor, nn

from pipeline.errors import InputError
from training.networks import Detector, NetworkSpec, build_from_spec, build_student, build_teacher

torch.set_num_threads(1)

SMALL = "mobilevitv2_050"


def crops(number: int = 2, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, side, side, 3), generator=generator, dtype=torch.uint8)


def lively(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics of its own data: with fresh ones a random network hardly looks at its input."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.05, generator=generator)
                module.running_var.uniform_(0.01, 0.05, generator=generator)
    return model.eval()


def student(name: str = SMALL, side: int = 64) -> Detector:
    torch.manual_seed(0)
    detector = build_student(name, image_size=side, pretrained="none")[0]
    lively(detector)
    return detector


def full_timm(name: str = SMALL, classes: int = 1000) -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return lively(model)


def saved(folder: Path, state: dict[str, Tensor], name: str = "weights.safetensors") -> Path:
    path = folder / name
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


# The contract


@pytest.mark.parametrize("name", [SMALL, "mobilenetv4_conv_small_035", "resnet10t"])
def test_uint8_crops_give_two_float32_logits_that_depend_on_them(name: str) -> None:
    detector = student(name)
    with torch.no_grad():
        logits = detector(crops(3))
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 2)
    assert logits.std(dim=0).min() > 1e-3
    assert isinstance(detector.head, nn.Linear)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 64, 64, 3),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 96, 96, 3, dtype=torch.uint8),
        torch.zeros(64, 64, 3, dtype=torch.uint8),
    ],
)
def test_other_inputs_are_refused_with_what_was_expected(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 \[N, 64, 64, 3\]"):
        student()(wrong)


@pytest.mark.parametrize(
    ("name", "head"),
    [(SMALL, "head.fc"), ("mobilenetv4_conv_small_035", "classifier"), ("tf_efficientnet_b0", "classifier")],
)
def test_logits_equal_timms_full_model_on_its_own_normalised_input(name: str, head: str) -> None:
    """Also where layers stand between pooling and classifier (MobileNetV4), and where mean and std are not 0 and 1."""
    reference = full_timm(name, classes=2)
    detector = student(name)
    state = reference.state_dict()
    detector.head.load_state_dict({leaf: state.pop(f"{head}.{leaf}") for leaf in ("weight", "bias")})
    detector.backbone.load_state_dict(state, strict=True)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    pictures = crops().permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
    assert detector.spec.mean == tuple(config.mean)
    with torch.no_grad():
        expected = reference((pictures - mean) / std)
        assert expected.std(dim=0).min() > 1e-4
        torch.testing.assert_close(detector(crops()), expected, rtol=1e-4, atol=1e-5)


def test_mean_and_std_can_be_set_and_are_applied_after_dividing_by_255() -> None:
    torch.manual_seed(0)
    shifted = build_student(
        SMALL, image_size=64, pretrained="none", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
    )[0]
    plain = student()
    plain.load_state_dict(shifted.state_dict())
    seen: list[Tensor] = []
    for detector in (shifted, plain):
        detector.backbone.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        detector.eval()(crops(1))
    red, green, blue = seen[1][0, :, 0, 0].tolist()
    expected = [(red - 0.5) / 0.2, (green - 0.4) / 0.2, (blue - 0.3) / 0.1]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert [red, green, blue] == pytest.approx([value / 255 for value in crops(1)[0, 0, 0].tolist()])


def test_dropout_works_in_training_only() -> None:
    detector = student()
    detector.backbone.eval()
    detector.dropout.train()
    torch.manual_seed(0)
    assert not torch.equal(detector(crops()), detector(crops()))
    detector.dropout.eval()
    assert torch.equal(detector(crops()), detector(crops()))
    assert detector.dropout.p == 0.3


def test_under_bf16_autocast_the_head_stays_float32() -> None:
    detector = student()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = detector(crops(8))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_building_draws_nothing_but_the_weights() -> None:
    """The probe that looks at the backbone must not move the run's random stream with the image size."""
    states = []
    for side in (64, 128):
        torch.manual_seed(5)
        build_student(SMALL, image_size=side, pretrained="none")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_building_leaves_batchnorm_fresh_and_the_network_in_training_mode() -> None:
    detector, _ = build_student(SMALL, image_size=64, pretrained="none")
    assert all(module.training for module in detector.modules())
    counters = [value for name, value in detector.named_buffers() if name.endswith("num_batches_tracked")]
    assert counters
    assert not torch.stack(counters).any()


# Evidence


@pytest.mark.parametrize("name", [SMALL, "resnet10t", "tf_efficientnet_b0"])
def test_evidence_averages_to_the_margin_of_the_same_logits(name: str) -> None:
    detector = student(name)
    with torch.no_grad():
        detector.head.bias.copy_(torch.tensor([0.7, -0.4]))
        logits, evidence = detector.forward_with_evidence(crops(3))
        assert torch.equal(logits, detector(crops(3)))
    assert evidence.shape == (3, 2, 2)
    assert evidence.dtype == torch.float32
    torch.testing.assert_close(evidence.mean((1, 2)), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-5)
    assert evidence.flatten(1).std(dim=1).min() > 1e-4


def test_evidence_turns_its_sign_with_the_classes() -> None:
    detector = student()
    with torch.no_grad():
        _, before = detector.forward_with_evidence(crops())
        for values in detector.head.parameters():
            values.copy_(values.flip(0))
        _, after = detector.forward_with_evidence(crops())
    torch.testing.assert_close(after, -before)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small_035", "convnext_atto"])
def test_networks_with_layers_behind_the_pooling_have_no_evidence(name: str) -> None:
    detector = student(name)
    assert not detector.has_evidence
    with pytest.raises(InputError, match=rf"{name} has no evidence map.*mobilevitv2"):
        detector.forward_with_evidence(crops())


# Specs, names, sizes


def test_a_spec_survives_json_and_rebuilds_the_same_tensors() -> None:
    detector = student()
    again = build_from_spec(NetworkSpec.model_validate_json(detector.spec.model_dump_json()))
    again.load_state_dict(detector.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(crops()), detector(crops()))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 8},
        {"dropout": 1.0},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.0, 0.0)},
        {"mean": (0.0, 0.0, float("nan"))},
        {"momentum": 0.1},
    ],
)
def test_a_spec_refuses_what_cannot_be_built(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkSpec.model_validate({"name": SMALL, "image_size": 64, **change})
    with pytest.raises(ValidationError, match="frozen"):
        NetworkSpec(name=SMALL, image_size=64).name = "other"  # type: ignore[misc]


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'mobilevit2_200'.*Did you mean mobilevitv2_200"):
        build_student("mobilevit2_200", image_size=256, pretrained="none")


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"mobilevitv2_200 has no weights tagged 'apple'.*cvnets_in1k"):
        build_student("mobilevitv2_200.apple", image_size=256, pretrained="none")


def test_sizes_at_which_mobilevit_would_resize_its_maps_are_refused_and_the_suggested_ones_work() -> None:
    with pytest.raises(InputError, match="would resize its own feature maps") as caught:
        build_student(SMALL, image_size=100, pretrained="none")
    found = re.search(r"(\d+) or (\d+)\.$", str(caught.value))
    assert found
    below, above = int(found[1]), int(found[2])
    assert below < 100 < above
    for side in (below, above):
        assert student(side=side)(crops(1, side)).shape == (1, 2)


@pytest.mark.parametrize("side", [256, 320, 380, 384])
def test_the_usual_sizes_are_accepted(side: int) -> None:
    build_student(SMALL, image_size=side, pretrained="none")


def test_a_size_that_the_network_cannot_take_names_the_setting() -> None:
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224 cannot take 96 px.*image_size"):
        build_student("vit_tiny_patch16_224", image_size=96, pretrained="none")


def test_drop_path_reaches_the_backbone_or_is_refused() -> None:
    detector, _ = build_student(SMALL, image_size=64, pretrained="none", drop_path=0.2)
    rates = [module.drop_prob for module in detector.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"vgg11.*drop_path"):
        build_student("vgg11", image_size=64, pretrained="none", drop_path=0.2)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    detector, twin = student(), student()
    twin.set_gradient_checkpointing(True)
    for network in (detector, twin):
        torch.manual_seed(0)  # the same dropout mask
        torch.autograd.backward(network.train()(crops(4))[:, 1].sum())
    for one, other in zip(detector.backbone.parameters(), twin.backbone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# Weights from a file


def test_a_timm_file_fills_every_backbone_tensor_and_the_report_says_so(tmp_path: Path) -> None:
    reference = full_timm()
    path = saved(tmp_path, reference.state_dict())
    detector, report = build_student(SMALL, image_size=64, pretrained=str(path))
    assert report.matched == report.total == len(detector.backbone.state_dict()) == 267
    assert report.dropped == ("head.fc.bias", "head.fc.weight")
    assert report.head == "random"
    assert report.source == f"file:{path}"
    assert report.sha256 is not None
    assert len(report.sha256) == 64
    assert "267 of 267 tensors, 2 classifier tensors dropped" in str(report)
    expected = {
        name: value for name, value in reference.state_dict().items() if not name.startswith("head.fc")
    }
    for name, value in detector.backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "wrapper", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
def test_torch_files_bare_or_wrapped_are_read(
    tmp_path: Path, wrapper: Callable[[dict[str, Tensor]], dict[str, object]]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrapper(full_timm().state_dict()), path)
    assert build_student(SMALL, image_size=64, pretrained=path)[1].matched == 267


def test_half_precision_files_fill_float32_networks(tmp_path: Path) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in full_timm().state_dict().items()}
    detector, _ = build_student(SMALL, image_size=64, pretrained=saved(tmp_path, state))
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert torch.equal(detector.backbone.state_dict()["stem.conv.weight"], state["stem.conv.weight"].float())


def _without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != "stem.conv.weight"}


def _with(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "stages.9.conv.weight": torch.zeros(1)}


def _reshaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "stem.conv.weight": torch.zeros(1, 3, 3, 3)}


def _many(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, **{f"stages.9.{index}.weight": torch.zeros(1) for index in range(30)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"266 of 267 tensors match. 1 missing: stem\.conv\.weight\."),
        (_with, r"267 of 267 tensors match. 1 not in the network: stages\.9\.conv\.weight\."),
        (
            _reshaped,
            r"266 of 267.*1 of another shape: stem\.conv\.weight \(1, 3, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
        (_many, r"30 not in the network: .*stages\.9\.26\.weight … and 10 more"),
    ],
)
def test_weights_that_fit_only_partly_are_refused_with_the_list(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = saved(tmp_path, change(full_timm().state_dict()))
    with pytest.raises(InputError, match=message):
        build_student(SMALL, image_size=64, pretrained=path)


def test_the_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, full_timm("mobilevitv2_075").state_dict())
    with pytest.raises(InputError, match="of another shape"):
        build_student(SMALL, image_size=64, pretrained=path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["conv_1.block.conv.weight", "layer_1.0.block.exp_1x1.block.conv.weight"],
            "Apple's own file.*imagenet",
        ),
        (["backbone.stem.conv.weight", "head.weight"], "saved by stillface itself"),
        (["net._conv_stem.weight", "net._fc.weight"], "EfficientNet-PyTorch.*teacher"),
    ],
)
def test_foreign_files_are_recognised_by_their_names(tmp_path: Path, names: list[str], message: str) -> None:
    path = saved(tmp_path, {name: torch.zeros(1) for name in names})
    with pytest.raises(InputError, match=message):
        build_student(SMALL, image_size=64, pretrained=path)


def test_diverged_weights_are_refused(tmp_path: Path) -> None:
    state = full_timm().state_dict()
    state["stem.conv.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"NaN or Inf in stem\.conv\.weight"):
        build_student(SMALL, image_size=64, pretrained=saved(tmp_path, state))


def test_a_missing_or_torn_safetensors_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'imagnet': expected `imagenet`, `none`, or a file that exists"):
        build_student(SMALL, image_size=64, pretrained="imagnet")
    with pytest.raises(InputError, match="is not a file"):
        build_student(SMALL, image_size=64, pretrained=tmp_path)
    path = saved(tmp_path, full_timm().state_dict())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        build_student(SMALL, image_size=64, pretrained=path)


# Weights from timm's hub, without a network


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache, and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_unreachable_imagenet_weights_say_what_to_do(hub: Path) -> None:
    with pytest.raises(InputError, match=r"mobilevitv2_050 cannot be had.*local \.safetensors.*`none`"):
        build_student(SMALL, image_size=64, pretrained="imagenet")


def test_cached_imagenet_weights_are_matched_to_the_last_tensor(hub: Path) -> None:
    reference = full_timm()
    snapshot = hub / "models--timm--mobilevitv2_050.cvnets_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    saved(snapshot, reference.state_dict(), "model.safetensors")
    detector, report = build_student(SMALL, image_size=64, pretrained="imagenet")
    assert (report.source, report.matched, report.total) == (f"imagenet:{SMALL}", 267, 267)
    assert torch.equal(
        detector.backbone.state_dict()["stem.conv.weight"], reference.state_dict()["stem.conv.weight"]
    )


def test_without_weights_the_report_says_zero() -> None:
    for report in (
        build_student(SMALL, image_size=64, pretrained="none")[1],
        build_teacher(None, name="tf_efficientnet_b0", image_size=64)[1],
    ):
        assert (report.source, report.matched, report.head) == ("none", 0, "random")
        assert report.total > 200
