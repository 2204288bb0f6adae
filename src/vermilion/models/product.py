"""x W^T + b, by whichever way is fastest here. Shapes: N rows, I inputs, O outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW_ROWS = 4
"""Up to this many, W x^T is the fastest way."""
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, row-major and contiguous, in memory of its own.

    PyTorch leaves fp32 products on a CPU to MKL. For few rows its kernels for W x^T run up to three times
    faster than those for x W^T, and two rows faster than one; from a few rows on oneDNN's are faster than
    either (bench/products.py has the figures), so those are asked for.
    """
    rows = x_NI.shape[0]
    if x_NI.dtype != torch.float32 or x_NI.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x_NI, weight_OI, bias_O)
    if rows > _FEW_ROWS:
        if not _ONEDNN or torch.is_autocast_enabled("cpu"):
            return F.linear(x_NI, weight_OI, bias_O)
        # What TorchInductor lowers a linear layer to; F.linear never gets there with fp32.
        y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
        return y_NO
    if rows == 1:
        x_NI = x_NI.expand(2, -1).contiguous()
    y_NO = torch.mm(weight_OI, x_NI.t()).t()[:rows].contiguous()
    return y_NO if bias_O is None else y_NO.add_(bias_O)
