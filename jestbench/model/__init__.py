"""The two towers and the losses between them."""
