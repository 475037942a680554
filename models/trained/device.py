"""The device that a command computes on."""

import torch

from models.precision import use_tf32


def choose_device(name: str) -> torch.device:
    """The device of a name, or with auto a GPU if there is one, set to compute in whole float32.

    Raises ValueError if it does not exist.
    """
    use_tf32(False)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but this machine has {torch.cuda.device_count()} GPUs: use auto or cpu")
    return device
