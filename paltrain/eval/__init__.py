"""Evaluation: answers of trained models, their scores, and what chance would score."""
