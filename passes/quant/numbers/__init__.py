"""Which integers stand for which reals."""
