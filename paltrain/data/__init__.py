"""Manifests, features, order, plan and loader: from recordings to packed micro-batches."""
