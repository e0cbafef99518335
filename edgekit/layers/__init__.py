"""Layer by layer: where do two models of one float model part, and which layer is to blame?"""
