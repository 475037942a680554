"""Operations that the networks are made of: plain PyTorch on a CPU, fused kernels on a GPU."""
