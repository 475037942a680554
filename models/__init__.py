"""The mathematics of DDPM (Ho et al. 2020): U-Net, diffusion, samplers, likelihood, EMA, snapshots."""
