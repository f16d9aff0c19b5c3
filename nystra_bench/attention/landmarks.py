"""Landmarks: the few tokens that stand for all tokens of a window."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def landmark_grid(landmarks: int, height: float = math.inf, width: float = math.inf) -> tuple[int, int]:
    """Rows and columns of the grid of ``landmarks`` cells that is nearest to a square, rows <= columns.

    In a narrow window that cannot hold it (a strip of one row, say), the nearest to a square that it can hold.
    """
    grids = [(rows, landmarks // rows) for rows in range(1, landmarks + 1) if landmarks % rows == 0]
    fitting = [(rows, columns) for rows, columns in grids if rows <= height and columns <= width]
    return min(fitting or grids, key=lambda grid: (abs(grid[0] - grid[1]), grid[0]))


def refuses_landmarks(landmarks: int, height: int, width: int) -> str | None:
    """Why a window (tokens) cannot hold that many landmarks, as one clause; None where it can."""
    if landmarks > height * width:
        return f"landmarks={landmarks} exceed the {height * width} tokens of a {height}x{width} window"
    rows, columns = landmark_grid(landmarks, height, width)
    if rows > height or columns > width:
        return f"landmarks={landmarks} make a grid of {rows}x{columns}, which exceeds a {height}x{width} window"
    return None


def pooled_landmarks(tokens: Tensor, height: int, width: int, landmarks: int) -> Tensor:
    """Average the tokens (..., N, d) of each cell of the landmark grid: (..., landmarks, d).

    PnP-Nystra (arXiv 2506.08520), section III. Cells overlap only where the grid does not divide the window,
    as in adaptive average pooling.
    """
    image = tokens.reshape(-1, height, width, tokens.shape[-1]).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(image, landmark_grid(landmarks, height, width))
    return pooled.permute(0, 2, 3, 1).reshape(*tokens.shape[:-2], landmarks, -1)


def central_tokens(landmarks: int, height: int, width: int) -> Tensor:
    """Numbers (landmarks,) int64 of the tokens in the middle of the landmark grid's cells; all differ."""
    rows, columns = landmark_grid(landmarks, height, width)
    y = (2 * torch.arange(rows) + 1) * height // (2 * rows)
    x = (2 * torch.arange(columns) + 1) * width // (2 * columns)
    return (y[:, None] * width + x).flatten()


def every_other_token(tokens: Tensor, height: int, width: int) -> Tensor:
    """Those of (..., N, d) in every other row and column, from the second on; a line that is alone stays."""
    first = min(1, height - 1), min(1, width - 1)
    return tokens.unflatten(-2, (height, width))[..., first[0] :: 2, first[1] :: 2, :].flatten(-3, -2)
