"""The model seams: BLIP captioner and matcher. Imported only when a stage opens."""
