"""The limits of gpt-oss's activation. A helper only, no kernel."""
import triton
import triton.language as tl


@triton.jit
def clamped(gate, up, limit):
    """Gate and up within their limits, and what up is multiplied as."""
    g = tl.where((limit > 0.0) & (gate > limit), limit, gate)
    u = tl.where((limit > 0.0) & (up > limit), limit, tl.where((limit > 0.0) & (up < -limit), -limit, up))
    return g, tl.where(limit > 0.0, u + 1.0, u)
