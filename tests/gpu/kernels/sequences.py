"""What the checks of kernels that go along sequences share: packed sequences with padding, and neighbours that are NaN."""
import torch

from rows_check import ints

TILE = 128


def packed(lengths):
    """bounds of sequences one after the other, and padding to whole tiles."""
    rows = -(-sum(lengths) // TILE) * TILE
    bounds, starts = [[row, row] for row in range(rows)], []
    row = 0
    for length in lengths:
        starts.append(row)
        bounds[row : row + length] = [[row, row + length]] * length
        row += length
    return ints(bounds), starts, rows


def between(bounds, *tensors):
    """The same next to tiles of two other adapters, whose sequences fill them and whose values are NaN: none may come
    through."""
    other = ints([[0, TILE]] * TILE)
    nan = lambda t: torch.full((TILE, t.shape[1]), float("nan"), device=t.device, dtype=t.dtype)  # noqa: E731
    return torch.cat([other, bounds + TILE, other + TILE + len(bounds)]), *(torch.cat([nan(t), t, nan(t)]) for t in tensors)
