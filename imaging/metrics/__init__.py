"""sr_BCHW and hr_BCHW -> PSNR and SSIM (fidelity.py); LPIPS, which needs a trunk's weights, is in perceptual.py."""

from imaging.metrics.fidelity import BORDER, Space, is_of_one_colour, luma, psnr, squared_error, ssim

__all__ = ["BORDER", "Space", "is_of_one_colour", "luma", "psnr", "squared_error", "ssim"]
