"""The passes that come with graphopt, one folder a family; see `graphopt.base.Pass` for what a pass is."""
