"""Arithmetic that every Triton kernel of this package shares.

`ACC` below is the accumulating type: float64 where either input is float64, else float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scalar(x, DOUBLE: tl.constexpr):
    """A number >= 0 that `launch.Scalars` packed: Triton passes Python floats as float32."""
    if DOUBLE:
        x = -x.to(tl.float64, bitcast=True)
    return x


@triton.jit
def divide(a, b, DOUBLE: tl.constexpr):
    """a / b, correctly rounded: `/` on float32 is an approximation."""
    return a / b if DOUBLE else tl.div_rn(a, b)


@triton.jit
def square_root(x, DOUBLE: tl.constexpr):
    """The root of x, correctly rounded: `tl.sqrt` on float32 is an approximation."""
    return tl.sqrt(x) if DOUBLE else tl.sqrt_rn(x)


@triton.jit
def scaled_exp(x, scale, scale_rest):
    """exp(x / T) for x <= 0, where scale + scale_rest = log2(e) / T.

    2^(x scale) times one correction for what rounding took from the product, whose error would
    otherwise grow with |x|. Below 2^-2000 the result is 0 and the correction not a number.
    A GPU's 2^x has a relative error of up to 2^-22 in float32. Where all logits of a row are nearly
    equal that is more than the deviations from the mean can bear, so exponents near 0 are summed.
    """
    scale = tl.zeros_like(x) + scale
    product = x * scale
    rest = tl.fma(x, scale, -product) + x * scale_rest
    rest = tl.where(product > -2000.0, rest, 0.0)
    power = tl.exp2(product)
    power += power * (rest * 0.6931471805599453)
    if x.dtype == tl.float32:
        t = (product + rest) * 0.6931471805599453  # x / T; t^5 / 120 < 2^-26 for |t| < 0.07
        series = 1.0 + t * (1.0 + t * (0.5 + t * (0.16666667 + t * 0.041666668)))
        power = tl.where(product > -0.1, series, power)
    return power


@triton.jit
def add_to_split(value, rest, change):
    """(value + rest) += change, where `value` is the rounded sum and `rest` what rounding left.

    Knuth's exact sum of two numbers, of whichever order of magnitude.
    """
    change = change + rest
    total = value + change
    taken = total - value
    rest = (value - (total - taken)) + (change - taken)
    return total, rest


@triton.jit
def correlation_from_moments(pp, qq, pq, eps, DOUBLE: tl.constexpr):
    """r and dr/dp = alpha q - beta p, from sums of squares and of products.

    N = sqrt(pp) sqrt(qq) + eps, r = pq / N, alpha = 1 / N, beta = pq sqrt(qq) / (N^2 sqrt(pp)), and
    0 where pp = 0: csrc/include/r2kd/correlation_math.h.
    """
    norm_p = square_root(pp, DOUBLE)
    norm_q = square_root(qq, DOUBLE)
    alpha = divide(tl.zeros_like(pp) + 1.0, norm_p * norm_q + eps, DOUBLE)
    r = pq * alpha
    positive = norm_p > 0.0
    beta = divide(r * alpha * norm_q, tl.where(positive, norm_p, 1.0), DOUBLE)
    return r, alpha, tl.where(positive, beta, 0.0)
