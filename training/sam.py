"""Sharpness-aware minimisation as a way to take a step, not as an optimizer.

Foret et al. 2021: climb to the worst point within `rho` of the weights (pass 1), take the gradient there
(pass 2), go back, and step with that gradient. Everything around it is what usually goes wrong: BatchNorm,
dropout, loss scaling, several processes, bad batches. The base optimizer stays a plain torch one, so its
state, its schedule and its checkpoint are untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pipeline.errors import InputError
from training.rewind import RandomStreams, Snapshot

Closure = Callable[[], Tensor]
"""Runs forward and loss of one micro-batch and returns the mean loss (0-dim, with a graph)."""

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did; plain numbers, read from the device in one transfer per pass.

    Attributes:
        loss: Mean loss over this process's micro-batches at the unperturbed weights.
        grad_norm: L2 norm of the gradient given to the optimizer, before clipping; of the bad one if skipped.
        sharpness: loss(w + e) - loss(w), or None without a second pass, or with one that was not finite.
        skipped: Which pass was not finite, so that nothing was changed; None for a step that was taken.
    """

    loss: float
    grad_norm: float
    sharpness: float | None
    skipped: Literal["first pass", "second pass"] | None


class SharpnessAware:
    """Take optimizer steps, with or without a sharpness-aware perturbation.

    Args:
        model: What the closures run; a DistributedDataParallel keeps the perturbation local to each process.
        optimizer: Any torch optimizer over the model's float32 parameters.
        rho: Radius of the perturbation (L2); 0 takes plain steps.
        adaptive: ASAM (Kwon et al. 2021), perturb in proportion to |w|; wants a `rho` about ten times larger.
        scope: Perturb "all" trainable parameters or only those of normalisation layers ("norm", SAM-ON).
        clip_norm: L2 norm to which the final gradient is clipped.
        scaler: Loss scaler, for fp16 only.
        sync_perturbation: Average pass 1's gradients over the processes (one more all-reduce per step).

    Raises:
        InputError: A setting that cannot work.

    Example:
        >>> step = SharpnessAware(model, optimizer, rho=0.05)  # doctest: +SKIP
        >>> report = step.step([lambda: loss(model(crops), labels)])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float,
        adaptive: bool = False,
        scope: Literal["all", "norm"] = "all",
        clip_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        sync_perturbation: bool = False,
    ) -> None:
        if not (math.isfinite(rho) and rho >= 0):
            raise InputError(f"sam rho is {rho}, expected 0 (off) or a positive number such as 0.05.")
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(
                f"clip_norm is {clip_norm}, expected a positive number, or null for no clipping."
            )
        self.model = model
        self.optimizer = optimizer
        self.rho = rho
        self.adaptive = adaptive
        self.clip_norm = clip_norm
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.sync_perturbation = sync_perturbation
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._perturbable = self._trained if scope == "all" else _norm_parameters(model, self._trained)
        self._device = next((parameter.device for parameter in self._trained), torch.device("cpu"))
        # timm's convention for "this module runs its forward again in the backward pass".
        self._recomputing = [module for module in model.modules() if hasattr(module, "grad_checkpointing")]
        if rho > 0:
            _check_perturbable(self._perturbable, scope)

    def step(self, closures: Sequence[Closure], *, perturb: bool = True) -> StepReport:
        """Take one step over the micro-batches, whose losses are averaged.

        Every closure is called once per pass and must do the same both times: what is drawn outside torch's
        own random streams, and the teacher's answer, belongs in front of the step. After a step that was
        skipped or raised, weights, optimizer state and buffers are as before; random streams have moved on.

        Args:
            closures: One per micro-batch, all of equal weight.
            perturb: False takes a plain step, the same to the bit as `rho` 0.

        Raises:
            ValueError: No closures, or a loss that is not one number.
            RuntimeError: No parameter received a gradient.
        """
        if not closures:
            raise ValueError("a step needs at least one closure")
        buffers = list(self.model.buffers())
        before = Snapshot(buffers)
        taken = False
        try:
            report = self._sharp(closures, buffers) if perturb and self.rho > 0 else self._plain(closures)
            taken = report.skipped is None
        finally:
            if not taken:
                before.restore()
        return report

    def _plain(self, closures: Sequence[Closure]) -> StepReport:
        loss = self._pass(closures, synchronise=True)
        value, norm, finite = self._update(loss)
        return StepReport(value, norm, None, None if finite else "first pass")

    def _sharp(self, closures: Sequence[Closure], buffers: Sequence[Tensor]) -> StepReport:
        streams = RandomStreams(self._device)
        loss = self._pass(closures, synchronise=self.sync_perturbation)
        value, norm, finite = self._read(loss, self._ascent_norm())
        if not finite:
            self._give_up()
            return StepReport(value, norm, None, "first pass")
        clean = Snapshot(buffers)
        with self._perturbed(norm):
            try:
                streams.rewind()
                worst = self._pass(closures, synchronise=True)
            finally:
                clean.restore()
        worst_value, norm, finite = self._update(worst)
        if not finite:
            return StepReport(value, norm, None, "second pass")
        return StepReport(value, norm, worst_value - value, None)

    def _pass(self, closures: Sequence[Closure], *, synchronise: bool) -> Tensor:
        """Leave the mean gradient in `.grad` and return the mean loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for index, closure in enumerate(closures):
            is_last = index == len(closures) - 1
            # The forward must be inside too: DistributedDataParallel decides there whether to reduce.
            with self._unless(synchronise and is_last):
                loss = closure() / len(closures)
                if loss.ndim:
                    raise ValueError(f"a closure returns one mean loss, given shape {list(loss.shape)}")
                with self._buffers_kept_in_backward():
                    torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
            total = total + loss.detach()
        return total

    def _unless(self, synchronise: bool) -> AbstractContextManager[None]:
        if synchronise or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    @contextmanager
    def _buffers_kept_in_backward(self) -> Iterator[None]:
        """Undo what gradient checkpointing does to BatchNorm when it runs the forward again."""
        if not any(module.grad_checkpointing for module in self._recomputing):
            yield
            return
        kept = Snapshot(list(self.model.buffers()))
        yield
        kept.restore()

    @torch.no_grad()
    def _ascent_norm(self) -> Tensor:
        found, gradients = _with_gradients(self._perturbable)
        return get_total_norm(torch._foreach_mul(found, gradients) if self.adaptive else gradients)

    @contextmanager
    def _perturbed(self, norm: float) -> Iterator[None]:
        """Add e(w) = rho · g / ‖g‖ (ASAM: rho · w²g / ‖wg‖); copy the old weights back whatever happens."""
        moved, gradients = _with_gradients(self._perturbable)
        with torch.no_grad():
            kept = Snapshot(moved)
            try:
                if self.adaptive:
                    gradients = list(torch._foreach_mul(gradients, torch._foreach_mul(moved, moved)))
                torch._foreach_add_(moved, gradients, alpha=self.rho / (norm + 1e-12))
                with torch.enable_grad():
                    yield
            finally:
                # By copy: adding and subtracting in float32 does not come back to the same weights.
                kept.restore()

    def _update(self, loss: Tensor) -> tuple[float, float, bool]:
        """Unscale, judge, clip and step; return loss, norm and whether the step was taken."""
        _, gradients = _with_gradients(self._trained)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = get_total_norm(gradients)
        value, size, finite = self._read(loss, norm)
        if not finite:
            self._give_up()
            return value, size, False
        if self.clip_norm is not None:
            clip_grads_with_norm_(self._trained, self.clip_norm, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return value, size, True

    def _read(self, loss: Tensor, norm: Tensor) -> tuple[float, float, bool]:
        """Fetch both numbers and whether they are finite in every process (a host-device sync)."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        values = torch.stack([loss, norm.to(loss.dtype), finite.to(loss.dtype)])
        if isinstance(self.model, DistributedDataParallel):
            distributed.all_reduce(values[2], op=distributed.ReduceOp.MIN, group=self.model.process_group)
        value, size, flag = values.tolist()
        return value, size, flag == 1.0

    def _give_up(self) -> None:
        """Drop the gradients and, with a scaler, lower the scale in every process alike."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            return
        # `update()` wants an inf found by `unscale_`, which after a local pass 1 not every process has.
        state = self.scaler.state_dict()
        state["scale"] *= state["backoff_factor"]
        state["_growth_tracker"] = 0
        self.scaler.update(state["scale"])  # forgets a half-done unscale_
        self.scaler.load_state_dict(state)


def _with_gradients(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient, and their gradients.

    Raises:
        RuntimeError: None has.
    """
    found = [parameter for parameter in parameters if parameter.grad is not None]
    if not found:
        raise RuntimeError("no parameter received a gradient: the loss does not depend on the network")
    return found, [parameter.grad for parameter in found if parameter.grad is not None]


def _norm_parameters(model: nn.Module, trained: Sequence[Tensor]) -> list[Tensor]:
    """Pick by module type, not by name: names differ between networks."""
    inside = {
        id(own)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for own in module.parameters(False)
    }
    return [parameter for parameter in trained if id(parameter) in inside]


def _check_perturbable(parameters: Sequence[Tensor], scope: str) -> None:
    if not any(parameter.requires_grad for parameter in parameters):
        raise InputError(f"SAM with scope {scope!r} finds no trainable parameter. Use scope 'all' or rho 0.")
    half = {parameter.dtype for parameter in parameters} - {torch.float32, torch.float64}
    if half:
        raise InputError(
            f"SAM perturbs float32 weights, given {half}: use autocast instead of casting the network."
        )
