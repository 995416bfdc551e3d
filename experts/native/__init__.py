"""Our own trainable experts: three hybrid networks (`msg`, `freqnet`, `ssm`) composed from shared blocks."""
