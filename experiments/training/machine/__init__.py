"""The devices and processes that a run uses."""
