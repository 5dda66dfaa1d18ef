"""Texts as data: tokenised once, read as flat ids, under views that leave tokens out."""
