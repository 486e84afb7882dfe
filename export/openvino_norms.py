"""The norms of `export.mobilevit` as OpenVINO's own operator.

For ONNX Runtime a GroupNorm of one group is written as trees of sums (see `export.mobilevit.PlainNorm`): ten operators.
OpenVINO computes the same in one pass, and rounds to int8 in that pass. Its fp32 models keep the sums: of 79 crops one
was off by 7.3e-5 of a logit with this operator and none by more than 2.2e-5 with them (a trained mobilevitv2_200); the
bound is 1e-4.
"""

from __future__ import annotations

from typing import Any, Final

_FORM: Final = "opset1"
_AXES: Final = [1, 2, 3]


def fuse_norms(model: Any) -> int:
    """Put one MVN in place of each norm of an `openvino.Model`, in place.

    What looks nearly like one is left alone: other axes, another power, a mean over part of the map.

    Returns:
        How many there were.
    """
    from openvino import opset13, passes

    def form(kind: str, *inputs: Any, since: str = _FORM) -> Any:
        return passes.WrapType(f"{since}.{kind}", list(inputs))

    def constant() -> Any:
        return passes.WrapType(f"{_FORM}.Constant")

    source, channels, plane, two, others, size, epsilon = passes.AnyInput(), *(constant() for _ in range(6))
    pooled = form("AvgPool", form("AvgPool", source))
    centred = form("Subtract", source, form("ReduceMean", pooled, channels))
    squares = form("Power", form("ReduceL2", centred, plane, since="opset4"), two)
    variance = form("Divide", form("ReduceMean", squares, others), size)
    divided = form("Divide", centred, form("Sqrt", form("Add", variance, epsilon)))
    found = 0

    def replace(matcher: Any) -> bool:
        nonlocal found
        at = matcher.get_pattern_value_map()

        def values(pattern: Any) -> list[float]:
            return list(at[pattern].get_node().get_data().ravel().tolist())

        shape, averages = at[source].get_partial_shape(), at[pooled].get_partial_shape()
        if shape.rank.get_length() != 4 or any(shape[axis].is_dynamic for axis in _AXES):
            return False
        height, width = shape[2].get_length(), shape[3].get_length()
        whole = [averages[axis].get_length() for axis in (2, 3)] == [1, 1]
        expected = {channels: [1], plane: [2, 3], two: [2], others: [1], size: [height * width]}
        if not whole or any(values(pattern) != wanted for pattern, wanted in expected.items()):
            return False
        root = matcher.get_match_root()
        norm = opset13.mvn(at[source], opset13.constant(_AXES), True, values(epsilon)[0], "inside_sqrt")
        norm.set_friendly_name(root.get_friendly_name())
        for output in root.outputs():
            norm.output(0).get_tensor().add_names(output.get_names())
            output.replace(norm.output(0))
        found += 1
        return True

    manager = passes.Manager()
    manager.register_pass(passes.MatcherPass(passes.Matcher(divided, "PlainNorm"), replace))
    manager.run_passes(model)
    return found
