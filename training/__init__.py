"""Makes the pocket model: data, training stages, conversion, evaluation. Scripts only; nothing here ships in the
wheel.
"""
