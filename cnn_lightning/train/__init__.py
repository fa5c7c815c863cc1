"""The commands that train and test: fit, validate, test and predict."""
