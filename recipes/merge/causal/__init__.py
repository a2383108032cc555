"""Language models in the recipes finetune and merge: rows, training, scores and the merged twin."""
