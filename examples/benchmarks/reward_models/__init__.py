"""Reward models on pairs whose better completion is known: how often are they right, and is it more than length?"""
