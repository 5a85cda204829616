"""Programs as compilers made them, for the devices at hand or for a topology that is not here, and what they tell."""
