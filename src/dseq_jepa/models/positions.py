"""Fixed 2-D sin-cos positions, in numpy so that exporting needs no torch.

    python -c 'from dseq_jepa.models.positions import sincos_2d; print(sincos_2d(14, 768).shape)'

Values and order are those of MAE (He et al., 2022) and of I-JEPA's public code, so that their weights fit.
"""

import numpy as np
from numpy.typing import NDArray


def sincos_2d(grid: int, width: int) -> NDArray[np.float32]:
    """Positions of a square grid in row-major order, (T, D) float32 with T = grid * grid.

    The first half of the width encodes the column, the second half the row; each half is the sines and then the
    cosines of position / 10000^(k / (D/4)), k = 0 .. D/4 - 1.

    Raises:
        ValueError: the width is not a multiple of 4.

    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, got {width}")
    quarter = width // 4
    frequency_Q = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float64) / quarter)
    angle_GQ = np.arange(grid, dtype=np.float64)[:, None] * frequency_Q
    line_GH = np.concatenate([np.sin(angle_GQ), np.cos(angle_GQ)], axis=1)
    column_TH = np.tile(line_GH, (grid, 1))
    row_TH = np.repeat(line_GH, grid, axis=0)
    return np.concatenate([column_TH, row_TH], axis=1).astype(np.float32)
