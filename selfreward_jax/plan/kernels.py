"""Operations of the TPU kernels that programs call: their insides are no part of a program's text.

Shape letters: B rows, H query heads, K kv heads, T queries, S keys, E head size.
"""

import math
from collections.abc import Sequence

Shape = tuple[int, ...]

# Products [T, E] x [S] that each of splash attention's kernels forms, by the first word of its name that fits.
_SPLASH = {"dkv": 4, "dq": 3, "fwd": 2}


def kernel_flops(name: str, operands: Sequence[Shape], results: Sequence[Shape]) -> float | None:
    """Of one call; None for a kernel that isn't known.

    A causal mask's empty blocks aren't computed, half of all; the diagonal's are, which is left out here.
    """
    if name.startswith("splash"):
        products = next((n for word, n in _SPLASH.items() if word in name), None)
        arrays = [s for s in operands if len(s) >= 3 and s[-1] > 1]
        if products is None:
            return None
        q = max((s for s in arrays if len(s) in (3, 4)), key=math.prod)
        *rows, heads, T, E = q
        return products * 2.0 * math.prod(rows) * heads * T * T * E / 2
    return None
