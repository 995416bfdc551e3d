"""Networks implemented here: `msg`, `freqnet`, `ssm` of shared blocks; EDSR and HiT-SRF, which spandrel lacks."""
