"""The norm compiled for accelerators that are not on this machine: what the optimised programs say of its cost."""
