"""Which modules of a model are adapted, and how: find the parts, choose targets, plan, inject."""
