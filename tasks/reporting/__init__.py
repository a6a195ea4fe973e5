"""What the report is made of: reading a run, judging its numbers, figures, page, cards, Prefect."""
