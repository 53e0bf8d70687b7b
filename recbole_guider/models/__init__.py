"""The backbones and how they score; they know nothing of GUIDER, of denoising, of trainers."""
