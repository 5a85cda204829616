"""The gradient noise scale: measurement, running average, and a batch size that follows it."""
