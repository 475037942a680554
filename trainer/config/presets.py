"""Named configurations. Paper presets follow App. B of Ho et al. 2020 and the authors' code (docs/FIDELITY.md)."""

from collections.abc import Callable
from dataclasses import replace

from models.config import DiffusionConfig, ModelConfig
from trainer.config.config import Config
from trainer.config.sections import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    OptimConfig,
    TrainConfig,
    WorkersConfig,
)

_TUTORIAL_UNET = ModelConfig(
    architecture="annotated", base_channels=64, channel_multipliers=(1, 2, 2, 4), attention_resolutions=(4,)
)
# The tutorial trains with constant 2e-5, batch 64 and no clipping; our EMA, flips and x0 clipping stay on.
_TUTORIAL_ADAM = OptimConfig(learning_rate=2e-5, warmup_steps=0, max_grad_norm=0.0)


def demo() -> Config:
    """Handwritten digits at 8 px on two CPU workers, in about four minutes."""
    return Config(
        data=DataConfig(path="demo:digits", horizontal_flip=False),
        model=ModelConfig(
            image_size=8,
            image_channels=1,
            base_channels=32,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100),
        # A constant 0.9999 would still be mostly the initial weights after so short a run.
        ema=EmaConfig(decay=0.999, warmup=True),
        train=TrainConfig(num_steps=2000, global_batch_size=64, log_every_steps=25),
        checkpoint=CheckpointConfig(every_steps=200, keep_every_steps=1),
        workers=WorkersConfig(num_workers=2, use_gpu=False),
    )


def demo_faces() -> Config:
    """Drawn faces at 16 px on two CPU workers: a look at the pipeline in colour."""
    base = demo()
    return replace(
        base,
        data=DataConfig(path="demo:faces?image_size=16"),
        model=replace(base.model, image_size=16, image_channels=3, attention_resolutions=(8,)),
        train=replace(base.train, num_steps=700),
        checkpoint=replace(base.checkpoint, every_steps=140),
    )


def cifar10() -> Config:
    """Sec. 4 and App. B: CIFAR-10, 800k steps of 128."""
    return Config(
        data=DataConfig(path="data/cifar10"),
        model=ModelConfig(dropout=0.1),
        diffusion=DiffusionConfig(variance="fixedlarge"),
        optim=OptimConfig(learning_rate=2e-4, clip_scope="slice", clip_slice_images=16),
        train=TrainConfig(num_steps=800_000, global_batch_size=128),
        checkpoint=CheckpointConfig(every_steps=10_000, keep_every_steps=50_000),
    )


def celebahq256() -> Config:
    """App. B: CelebA-HQ at 256 px, 500k steps of 64."""
    return Config(
        data=DataConfig(path="data/celebahq256"),
        model=ModelConfig(image_size=256, channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
        diffusion=DiffusionConfig(variance="fixedsmall"),
        optim=OptimConfig(learning_rate=2e-5, clip_scope="slice", clip_slice_images=8),
        train=TrainConfig(num_steps=500_000, global_batch_size=64),
        workers=WorkersConfig(num_workers=8),
        checkpoint=CheckpointConfig(every_steps=5000, keep_every_steps=50_000),
    )


def lsun256() -> Config:
    """App. B: LSUN at 256 px; 1.2M steps is Church. Bedroom: 2.4M and no flips; Cat: 1.8M."""
    base = celebahq256()
    return replace(base, data=DataConfig(path="data/lsun256"), train=replace(base.train, num_steps=1_200_000))


def celebahq64() -> Config:
    """CelebA-HQ at 64 px for one GPU: the paper's recipe with the CIFAR-10 width; not a setting of the paper."""
    return Config(
        data=DataConfig(path="data/celebahq64"),
        model=ModelConfig(image_size=64, dropout=0.0),
        diffusion=DiffusionConfig(variance="fixedsmall"),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(num_steps=300_000, global_batch_size=128),
        checkpoint=CheckpointConfig(every_steps=5000, keep_every_steps=50_000),
    )


def small32() -> Config:
    """Your own images at 32 px on a laptop or one GPU: the paper's CIFAR-10 network at a quarter of its width."""
    return Config(
        data=DataConfig(path="data/small32"),
        # A quarter of the width is about a sixteenth of the arithmetic and of the parameters.
        model=ModelConfig(base_channels=32, dropout=0.1),
        optim=OptimConfig(learning_rate=2e-4, warmup_steps=500),
        # The paper's 0.9999 averages over 10,000 steps, which is all of this run.
        ema=EmaConfig(decay=0.999, warmup=True),
        train=TrainConfig(num_steps=10_000, global_batch_size=64),
        checkpoint=CheckpointConfig(every_steps=1000, keep_every_steps=5000),
    )


def small64() -> Config:
    """Your own images at 64 px on a laptop or one GPU: as small32, with narrow fine levels as the paper's at 256 px."""
    base = small32()
    return replace(
        base,
        data=DataConfig(path="data/small64"),
        # Four times the pixels: the paper's larger network keeps its two finest levels at the base width, too.
        model=replace(base.model, image_size=64, channel_multipliers=(1, 1, 2, 2)),
        diffusion=DiffusionConfig(variance="fixedsmall"),
    )


def mnist32() -> Config:
    """The tutorial's MNIST experiment: its U-Net, grey images at 32 px, 100 epochs of 60,000 in batches of 64."""
    return Config(
        data=DataConfig(path="data/mnist32", horizontal_flip=False),
        model=replace(_TUTORIAL_UNET, image_channels=1),
        optim=_TUTORIAL_ADAM,
        train=TrainConfig(num_steps=93_750, global_batch_size=64),
    )


def celeba32() -> Config:
    """The tutorial's CelebA experiment: its U-Net at 32 px, about 47k steps of 64."""
    return Config(
        data=DataConfig(path="data/celeba32"),
        model=_TUTORIAL_UNET,
        optim=_TUTORIAL_ADAM,
        train=TrainConfig(num_steps=46_875, global_batch_size=64),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (demo, demo_faces, cifar10, celebahq256, celebahq64, lsun256, small32, small64, mnist32, celeba32)
}
