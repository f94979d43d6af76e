"""The price of one forward pass, in exact multiply-adds.

fvcore traces the raw module and counts; what it lacks or counts by another convention is set here:

* fused attention has no rule in fvcore, which then drops it with a warning: it gets one;
* fvcore adds some 5 operations per element for normalisation layers: element-wise work counts zero;
* an operator without a rule raises, instead of counting nothing.

FLOPs are 2 per multiply-add (what torch's own counter prints). That counter, which sees forward and backward
as they are executed, measures what is run again in a backward pass, and how far the 3x convention errs.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

FLOPS_PER_MAC = 2
TRAINING_PASSES = 3
"""A training pass in forward passes: forward, gradient by activations, gradient by weights."""

# Element-wise work, normalisation, reductions, copies and shapes: zero by convention.
FREE_OPERATORS = frozenset(
    "aten::" + name
    for name in (
        # shapes, copies, constants
        "Bool Int IntImplicit ScalarImplicit NumToTensor Float FloatImplicit size numel dim expand expand_as "
        "view view_as reshape flatten unflatten permute transpose t contiguous detach clone copy_ to type_as "
        "cat stack split split_with_sizes chunk unbind select slice narrow squeeze unsqueeze unsqueeze_ index "
        "index_select gather repeat repeat_interleave roll flip meshgrid reshape_as arange zeros zeros_like ones "
        "ones_like full full_like empty empty_like new_zeros new_ones new_full new_empty lift_fresh alias "
        "scalar_tensor constant_pad_nd pad im2col embedding index_put index_put_ fill_ scatter scatter_ masked_fill "
        "masked_fill_ where tril triu eye detach_ item __and__ __or__ __xor__ __lshift__ __rshift__ bitwise_and "
        "bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift bitwise_not logical_not logical_and logical_or "
        "eq ne lt le gt ge is_nonzero broadcast_tensors dropout dropout_ feature_dropout tile col2im "
        # element-wise arithmetic and activations
        "add add_ sub sub_ rsub mul mul_ div div_ floor_divide floor ceil round remainder neg abs abs_ pow sqrt rsqrt "
        "exp log sin cos tanh sigmoid silu silu_ gelu gelu_ relu relu_ softplus softmax log_softmax _softmax "
        "clamp clamp_ clamp_min clamp_max maximum minimum reciprocal square erf hardtanh hardtanh_ leaky_relu "
        "leaky_relu_ elu elu_ selu celu prelu mish mish_ log_sigmoid sigmoid_ tanh_ hardswish hardswish_ hardsigmoid "
        "hardsigmoid_ addcmul addcdiv "
        # normalisation, reductions, resizing
        "layer_norm group_norm batch_norm instance_norm rms_norm linalg_vector_norm norm sum mean var std max min "
        "amax amin argmax argmin cumsum prod all any topk sort argsort upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_nearest2d adaptive_avg_pool2d adaptive_max_pool2d "
        "avg_pool1d avg_pool2d max_pool1d max_pool2d"
    ).split()
)

# Attention of queries, keys and values [B, H, N, d]: the public name, and the kernels that it is sent to.
ATTENTIONS = tuple(
    f"aten::{name}"
    for name in (
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps "
        "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable"
    ).split()
)


class UnknownOperator(Exception):
    """A forward pass used an operator that has no price."""

    exit_status: ClassVar[int] = 2


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Q·Kᵀ and weights·V: B·H·N·M·(d_k + d_v), masked or not, causal or not."""
    q, k, v = (_shape(value) for value in inputs[:3])
    return math.prod(_shape(outputs[0])[:-1]) * k[-2] * (q[-1] + v[-1])


def _baddbmm_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    left, right = _shape(inputs[1]), _shape(inputs[2])
    return math.prod(left) * right[-1]


def _matmul_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """fvcore's rule forgets broadcast batches and fails on vectors."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _convolution_mode_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A convolution whose padding is a word (``valid``, ``same``), which fvcore lacks."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _einsum_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of two operands, written out; fvcore's rule reads a figure that numpy has rounded for print."""
    equation: str = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    terms, arrow, kept = equation.partition("->")
    if len(shapes) != 2 or "." in equation or not arrow:
        raise UnknownOperator(f"no price for aten::einsum '{equation}': write it as products of two operands, in full")
    left, right = terms.split(",")
    sizes = [*zip(left, shapes[0], strict=True), *zip(right, shapes[1], strict=True)]
    # What stands on one side only and is not kept is summed before the product.
    multiplied = set(kept) | (set(left) & set(right))
    return math.prod(max(n for name, n in sizes if name == label) for label in multiplied)


def _analysis(module: nn.Module, inputs: tuple[Tensor, ...]) -> FlopCountAnalysis:
    """Fvcore's count of a module in eval mode, by the rules of this file."""
    with warnings.catch_warnings():
        # Tracing is deprecated in torch, and all that fvcore has. Imported here: most commands trace nothing.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis, jit_handles

    rules: dict[str, Callable[[Sequence[Any], Sequence[Any]], Any]] = {
        **dict.fromkeys(ATTENTIONS, _attention_macs),
        "aten::baddbmm": _baddbmm_macs,
        "aten::addmm": jit_handles.addmm_flop_jit,
        "aten::mm": jit_handles.matmul_flop_jit,
        "aten::bmm": jit_handles.bmm_flop_jit,
        "aten::matmul": _matmul_macs,
        "aten::linear": jit_handles.linear_flop_jit,
        "aten::einsum": _einsum_macs,
        "aten::_convolution": jit_handles.conv_flop_jit,
        "aten::_convolution_mode": _convolution_mode_macs,
    }
    analysis = FlopCountAnalysis(module.eval(), inputs)
    # fvcore's own rules and its own list of free operators are dropped: these two are the whole truth.
    analysis.clear_op_handles()
    analysis.set_op_handle(**rules)
    analysis._ignored_ops = set(FREE_OPERATORS)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis


def _unknown(analysis: FlopCountAnalysis, module: nn.Module, operators: Sequence[str]) -> UnknownOperator:
    where = {
        name or type(module).__name__
        for name, _ in module.named_modules()
        if any(operator in analysis.unsupported_ops(name) for operator in operators)
        and not any(True for _ in module.get_submodule(name).children())
    }
    return UnknownOperator(
        f"no price for {', '.join(sorted(operators))} in {', '.join(sorted(where)) or type(module).__name__}: "
        "give it a rule in jestbench/cost/tracing.py, or add it to FREE_OPERATORS if it multiplies no matrices"
    )


def forward_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward call of the raw module, exactly.

    Independent of autocast, of torch's dispatch modes, of ``torch.compile`` (pass the module before it) and of whether
    attention is fused. The module is run once, without gradient, in eval mode.

    Args:
        module: a module that returns tensors.
        inputs: its positional inputs; shapes decide the price, values do not.

    Returns:
        A Python integer (multiply-adds; FLOPs are twice that).

    Raises:
        UnknownOperator: an operator has neither a rule nor a place in ``FREE_OPERATORS``.
    """
    modes = {part: part.training for part in module.modules()}
    analysis = _analysis(module, inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    # Torch's fast path drops padding by nested tensors, whose shapes no trace holds; a pass is priced at full length.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            # Inside a dispatch mode the trace of a convolution holds no operator that has a rule: it would be free.
            _disable_current_modes(),
            warnings.catch_warnings(),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            warnings.simplefilter("ignore", FutureWarning)
            operators: dict[str, float] = analysis.by_operator()
            unknown = sorted(analysis.unsupported_ops(""))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in modes.items():
            part.training = mode
    if unknown:
        raise _unknown(analysis, module, unknown)
    return sum(int(count) for count in operators.values())


@dataclass(frozen=True)
class Counted:
    """Multiply-adds that torch's own counter saw.

    Attributes:
        forward: of the forward pass.
        training: of the forward and the backward pass, with what the backward pass ran again.
    """

    forward: int
    training: int


SomeModule = TypeVar("SomeModule", bound=nn.Module)


def without_values(module: SomeModule, device: str = "meta") -> SomeModule:
    """A copy of a module with its shapes and without the values of its parameters; on ``meta`` without any values.

    Buffers keep their values on other devices: some of them are positions, by which a forward call indexes. Those
    that have none become zeros.
    """
    memo: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device=device), requires_grad=value.requires_grad)
        for value in module.parameters()
    }
    memo |= {
        id(value): torch.zeros_like(value, device=device) if value.is_meta else value.detach().to(device, copy=True)
        for value in module.buffers()
    }
    return copy.deepcopy(module, memo)


def _convolution_backward_flops(
    grad_out: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any = None
) -> int:
    """FLOPs of a convolution's backward pass: as many as forward for each gradient that is asked for.

    Torch's own formula leaves groups out, which makes a depthwise convolution dear.
    """
    *_, transposed, _padding, _groups, asked = rest
    forward = math.prod(inputs if transposed else grad_out) * math.prod(weight[1:])
    return FLOPS_PER_MAC * forward * (bool(asked[0]) + bool(asked[1]))


def counted_macs(module: nn.Module, *inputs: Tensor) -> Counted:
    """Forward and backward of one call in train mode, by torch's counter, under unfused attention.

    It counts what autograd really does: no gradient for an input that needs none, and of a checkpointed
    block only what runs before the last tensor that the backward pass needs (torch stops there).

    Args:
        module: of ``without_values``; or any other, which leaves gradients in its parameters.
        inputs: its positional inputs, on its device.
    """
    with (
        _disable_current_modes(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
        ) as counter,
    ):
        out: Tensor = module.train()(*inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    return Counted(forward // FLOPS_PER_MAC, counter.get_total_flops() // FLOPS_PER_MAC)
