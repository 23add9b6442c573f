"""What is said of a guarantee that promises next to nothing."""

from __future__ import annotations

IN_NAME_ONLY = 100.0  # an epsilon above this
NO_NOISE = 0.01  # a noise multiplier below this


def in_name_only(epsilon: float, z: float) -> list[str]:
    """Of an epsilon, or a noise multiplier z, that hides nothing."""
    found = []
    if epsilon > IN_NAME_ONLY:
        found.append(
            f"epsilon = {epsilon:.4g} promises next to nothing: whoever sees the result may tell an example's "
            "presence nearly always; usual are values below 10"
        )
    if z < NO_NOISE:
        found.append(f"a noise multiplier of {z:.3g} hides nothing; usual are values above 0.5")
    return found


def loose(delta: float, m: int) -> list[str]:
    """Of a delta that is too large for clients of m examples and more."""
    if delta < 1 / (10 * m):
        return []
    if delta < 1 / m:
        return [
            f"delta = {delta:g} is above 1/(10 m) = {1 / (10 * m):.3g} (the smallest client has m = {m} examples): it "
            "should be well below 1/m"
        ]
    return [
        f"delta = {delta:g} is not below 1/m = {1 / m:.3g} (the smallest client has m = {m} examples): publishing one "
        "example drawn at random would pass for private"
    ]
