"""What timm offers, asked in a way that refuses early: names, drop path, image sizes, and how features are pooled."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor

from pipeline.errors import InputError

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PublishedSettings:
    """How timm's weights of a network want their input, and what their classifier is called."""

    mean: Triple
    std: Triple
    classifier: tuple[str, ...]


def published_settings(name: str) -> PublishedSettings:
    """Return timm's record of a network; ImageNet's usual mean and std where it has none.

    Raises:
        InputError: No such network or tag; the message says what comes near.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"timm {timm.__version__} knows no network named {name!r}.{hint}")
    if tag and name not in (known := timm.list_models(f"{architecture}.*", pretrained=True)):
        raise InputError(
            f"{architecture} has no weights tagged {tag!r}. Known: {', '.join(known) or 'none'}."
        )
    record = timm.get_pretrained_cfg(name)
    if record is None:
        return PublishedSettings((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ())
    classifier = record.classifier or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return PublishedSettings(_triple(record.mean), _triple(record.std), names)


def create_backbone(name: str, drop_path: float) -> Any:
    """Build a timm network without its classifier, with random weights.

    Raises:
        InputError: An unknown name, or a drop path that the network has no use for.
    """
    published_settings(name)
    extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **extra)
    except TypeError as error:
        raise InputError(f"{name} takes no drop_path ({error}). Set drop_path to 0.") from error
    if drop_path and not any(isinstance(module, DropPath) for module in backbone.modules()):
        raise InputError(f"{name} would ignore drop_path {drop_path}. Set drop_path to 0.")
    return backbone


@torch.no_grad()
def examine(backbone: Any, name: str, image_size: int) -> tuple[int, bool]:
    """Run a backbone once, leaving weights, statistics and the random stream alone.

    Returns:
        The number of pooled features, and whether pooling is a plain mean over an NCHW map.

    Raises:
        InputError: The network cannot take this image size, or would resize its own feature maps at it.
    """
    backbone.eval()
    maps = _PatchedMaps(backbone)
    try:
        ramp = torch.linspace(0, 1, 3 * image_size**2).view(1, 3, image_size, image_size)
        features = backbone.forward_features(ramp)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{name} cannot take {image_size} px crops ({error}). Choose another image_size."
        ) from error
    finally:
        maps.stop()
    _refuse_uneven_maps(name, image_size, maps.found)
    probe = torch.rand(features.shape, generator=torch.Generator().manual_seed(0))
    pooled = backbone.forward_head(probe, pre_logits=True)
    backbone.train()
    mean = probe.mean((2, 3)) if probe.ndim == 4 else torch.empty(0)
    is_mean = pooled.shape == mean.shape and torch.allclose(pooled, mean, atol=1e-5)
    return pooled.shape[1], is_mean


class _PatchedMaps:
    """Notes the side of every feature map that a MobileViT block cuts into patches, and the patch's side."""

    def __init__(self, backbone: Any) -> None:
        self.found: set[tuple[int, int]] = set()
        kinds = (MobileVitBlock, MobileVitV2Block)
        blocks = [module for module in backbone.modules() if isinstance(module, kinds)]
        self._hooks = [block.register_forward_pre_hook(self._note) for block in blocks]

    def _note(self, block: Any, inputs: tuple[Tensor, ...]) -> None:
        self.found.add((inputs[0].shape[-1], block.patch_size[0]))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _refuse_uneven_maps(name: str, image_size: int, maps: set[tuple[int, int]]) -> None:
    """Refuse sizes at which MobileViT interpolates its maps: slower, and a Resize in every export."""
    levels = {(_halvings(image_size, found), patch) for found, patch in maps}

    def fits(size: int) -> bool:
        return all(_halved(size, level) % patch == 0 for level, patch in levels)

    if fits(image_size):
        return
    # Sizes such as 249 fit too, by padding at an edge; multiples of 4 are the ones people use.
    start = image_size // 4 * 4
    below = next((size for size in range(start, 31, -4) if fits(size)), None)
    above = next(size for size in range(start + 4, start + 1024, 4) if fits(size))
    near = f"{below} or {above}" if below else f"{above}"
    raise InputError(
        f"At {image_size} px {name} would resize its own feature maps (a side does not divide by its patch). "
        f"Nearest sizes without that: {near}."
    )


def _halved(size: int, times: int) -> int:
    """Side of a map after `times` convolutions of stride 2 with padding."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def _halvings(size: int, found: int) -> int:
    return next(times for times in range(16) if _halved(size, times) <= found)


def _triple(values: Any) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)
