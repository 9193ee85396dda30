"""The axial transformer on CPUs: 3x3 convolutions with 4/9 of the multiplications, and little memory.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308): tiles of 4x4 inputs, each 2 apart, and the
kernels are transformed by additions, so that 16 matrix products give tiles of 2x2 outputs. Rounding is as small as with
PyTorch's own convolution. Forward and backward take a few videos at a time, whose tiles stay in the cache; nothing but
the input is kept for the backward pass, which computes the hidden layer again. CUDA's convolutions know all this by
themselves.

Shapes: n videos, S segments, F frames of a segment, I inputs and O outputs of a convolution, P = n * S / 2 * F / 2
tiles.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomalyclip import AxisAttention, ConvFeedForward

POSITIONS = 1024  # of the grid in one go: 2 videos of 32 x 16, whose tiles take 4 MB for 256 channels, 16 MB for 1,024
KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G of the paper
SLOPE = 0.01  # of leaky_relu
LAYOUTS = {1: torch.contiguous_format, 4: torch.channels_last}  # of biases and kernels, so that none is laid out anew


def transform_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (16, I, O)."""
    return torch.einsum("ai,oxij,bj->abxo", KERNEL, weight, KERNEL).flatten(0, 1).contiguous()


def kernel_gradient(grad: Tensor) -> Tensor:
    """Gradient of a transformed kernel, (16, I, O), -> that of the kernel, (O, I, 3, 3)."""
    return torch.einsum("ai,abxo,bj->oxij", KERNEL, grad.unflatten(0, (4, 4)), KERNEL)


def transform_input(x: Tensor) -> Tensor:
    """(n, S, F, I) -> (16, P, I)."""
    n, S, F_, inputs = x.shape
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    rows = [x[:, i : i + S : 2] for i in range(4)]  # each (n, S / 2, F + 2, I)
    tiles = x.new_empty(4, 4, n, S // 2, F_ // 2, inputs)
    for out, row in zip(tiles, (rows[0] - rows[2], rows[1] + rows[2], rows[2] - rows[1], rows[1] - rows[3])):
        columns = [row[:, :, j : j + F_ : 2] for j in range(4)]
        torch.sub(columns[0], columns[2], out=out[0])
        torch.add(columns[1], columns[2], out=out[1])
        torch.sub(columns[2], columns[1], out=out[2])
        torch.sub(columns[1], columns[3], out=out[3])
    return tiles.flatten(0, 1).flatten(1, 3)


def transform_output(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """(16, P, O) and (n, S, F) -> (n, S, F, O)."""
    n, S, F_ = shape
    tiles = tiles.unflatten(0, (4, 4)).unflatten(2, (n, S // 2, F_ // 2))  # (4, 4, n, S / 2, F / 2, O)
    x = tiles.new_empty(n, S // 2, 2, F_ // 2, 2, tiles.shape[-1])
    for i, columns in enumerate((tiles[0] + tiles[1] + tiles[2], tiles[1] - tiles[2] - tiles[3])):
        torch.add(columns[0] + columns[1], columns[2], out=x[:, :, i, :, 0])
        torch.sub(columns[1] - columns[2], columns[3], out=x[:, :, i, :, 1])
    return x.view(n, S, F_, -1)


def transform_gradient(grad: Tensor) -> Tensor:
    """The transpose of `transform_output`: (n, S, F, O) -> (16, P, O)."""
    n, S, F_, outputs = grad.shape
    grad = grad.view(n, S // 2, 2, F_ // 2, 2, outputs)
    tiles = grad.new_empty(4, 4, n, S // 2, F_ // 2, outputs)
    upper, lower = grad[:, :, 0], grad[:, :, 1]
    for out, row in zip(tiles, (upper, upper + lower, upper - lower, -lower)):
        left, right = row[:, :, :, 0], row[:, :, :, 1]
        out[0] = left
        torch.add(left, right, out=out[1])
        torch.sub(left, right, out=out[2])
        torch.neg(right, out=out[3])
    return tiles.flatten(0, 1).flatten(1, 3)


def convolve(tiles: Tensor, kernel: Tensor, shape: Sequence[int]) -> Tensor:
    """Transformed input (16, P, I) and kernel (16, I, O) -> (n, S, F, O)."""
    return transform_output(torch.bmm(tiles, kernel), shape)


class FeedForward(torch.autograd.Function):
    """Convolution, leaky ReLU, convolution: what ConvFeedForward does behind its norm, (B, S, F, E) -> (B, S, F, E)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_1, bias_1, weight_2)
        kernel_1, kernel_2 = transform_kernel(weight_1), transform_kernel(weight_2)
        out = torch.empty_like(x)
        for part, result in zip(split(x), split(out)):
            hidden = F.leaky_relu_(convolve(transform_input(part), kernel_1, part.shape[:3]).add_(bias_1), SLOPE)
            torch.add(convolve(transform_input(hidden), kernel_2, part.shape[:3]), bias_2, out=result)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight_1, bias_1, weight_2 = ctx.saved_tensors
        kernel_1 = transform_kernel(weight_1)
        back_1, back_2 = (transform_kernel(weight.flip(2, 3).transpose(0, 1)) for weight in (weight_1, weight_2))
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        grad_1, grad_2 = torch.zeros_like(kernel_1), torch.zeros_like(back_2.transpose(1, 2))
        grad_bias_1, grad_bias_2 = torch.zeros_like(bias_1), grad.sum(dim=(0, 1, 2))
        for part, part_grad, result in zip(split(x), split(grad), split(grad_x)):
            shape, tiles = part.shape[:3], transform_input(part)
            hidden = F.leaky_relu_(convolve(tiles, kernel_1, shape).add_(bias_1), SLOPE)
            grad_2.baddbmm_(transform_input(hidden).transpose(1, 2), transform_gradient(part_grad))
            grad_hidden = convolve(transform_input(part_grad), back_2, shape)
            grad_hidden.mul_(torch.where(hidden > 0, 1.0, SLOPE))
            grad_bias_1 += grad_hidden.sum(dim=(0, 1, 2))
            grad_1.baddbmm_(tiles.transpose(1, 2), transform_gradient(grad_hidden))
            result.copy_(convolve(transform_input(grad_hidden), back_1, shape))
        return grad_x, kernel_gradient(grad_1), grad_bias_1, kernel_gradient(grad_2), grad_bias_2


def split(x: Tensor) -> tuple[Tensor, ...]:
    """Parts of a few videos, of (B, S, F, ...)."""
    return x.split(max(1, POSITIONS // (x.shape[1] * x.shape[2])))


def is_plain(x: Tensor) -> bool:
    """Float32 on a CPU, neither mixed with bfloat16 nor compiled."""
    mixed = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return x.device.type == "cpu" and x.dtype == torch.float32 and not mixed


def attend(module: AxisAttention, x: Tensor) -> Tensor:
    """AxisAttention.forward, computed again in the backward pass, so that nothing but its input is kept."""
    if is_plain(x) and torch.is_grad_enabled():
        return checkpoint(AxisAttention.forward, module, x, use_reentrant=False, preserve_rng_state=False)
    return AxisAttention.forward(module, x)


def feed_forward(module: ConvFeedForward, x: Tensor) -> Tensor:
    """ConvFeedForward.forward; a grid of odd sides has no whole tiles and goes the usual way."""
    if x.shape[1] % 2 or x.shape[2] % 2 or not is_plain(x):
        return ConvFeedForward.forward(module, x)
    return FeedForward.apply(
        module.norm(x).contiguous(), module.conv_1.weight, module.conv_1.bias, module.conv_2.weight, module.conv_2.bias
    )


def convolve_narrow(module: ConvFeedForward, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """ConvFeedForward.forward with both convolutions in the precision of the `weights`; an export keeps its own."""
    if torch.compiler.is_compiling():
        return ConvFeedForward.forward(module, x)
    weight_1, bias_1, weight_2, bias_2 = weights
    x, out = module.norm(x).to(weight_1.dtype), torch.empty_like(x)
    for part, result in zip(split(x), split(out)):  # each (n, E, S, F), in memory channels-last
        hidden = F.leaky_relu_(F.conv2d(part.permute(0, 3, 1, 2), weight_1, bias_1, padding=1), SLOPE)
        result.copy_(F.conv2d(hidden, weight_2, bias_2, padding=1).permute(0, 2, 3, 1))
    return out


def narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Lets an AnomalyCLIP convolve in bfloat16 or float16, for inference alone: with copies of its weights, cast once.

    Attention, norms and the residual streams stay float32, as do all parameters. The model is where it is to run.
    """
    for module in model.modules():
        if isinstance(module, ConvFeedForward) and dtype != torch.float32:
            kept = (module.conv_1.weight, module.conv_1.bias, module.conv_2.weight, module.conv_2.bias)
            weights = [x.detach().to(dtype, memory_format=LAYOUTS[x.ndim]) for x in kept if x is not None]
            module.forward = partial(convolve_narrow, module, weights)


def accelerate(model: nn.Module) -> None:
    """Lets an AnomalyCLIP work this way where it is on a CPU; its parameters and what it computes stay as they are."""
    for module in model.modules():
        if isinstance(module, AxisAttention):
            module.forward = partial(attend, module)
        if isinstance(module, ConvFeedForward):
            module.forward = partial(feed_forward, module)
