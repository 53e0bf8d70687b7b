"""The recommenders: backbones, teacher and the GUIDER wrapper."""
