"""What float32 means on a GPU."""

import torch


def use_tf32(enabled: bool) -> None:
    """Let this process's float32 convolutions and matrix products round their factors to 10 bits on a GPU, or not.

    torch rounds in convolutions by default, though not in matrix products. A processor computes in float32 always.
    """
    torch.backends.cudnn.allow_tf32 = enabled
    torch.set_float32_matmul_precision("high" if enabled else "highest")
