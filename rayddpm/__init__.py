"""RayDDPM in Python: load a trained model, draw images with it.

    import rayddpm

    model = rayddpm.load("runs/NAME")
    images = model.sample(16, seed=0, sampler="ddim", num_sampling_steps=50)

`images` is (16, H, W, C) uint8, of the same bits as those of `rayddpm models sample`. What is named here is the public
interface, documented in docs/SAMPLING.md; everything else may change from one version to the next.
"""

from models.trained.model import Images, Stages, TrainedModel, load

__all__ = ["Images", "Stages", "TrainedModel", "load"]
