"""Labelled images and what is to be forgotten of them."""
