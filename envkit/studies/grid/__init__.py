"""The grid that studies share: arms, cells, budgets, findings and pages."""
