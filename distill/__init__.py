"""The gap between a student and its teacher: distillation losses, recipes and a LightningModule."""
