"""Are edits of weights and of activations different kinds of control?"""
