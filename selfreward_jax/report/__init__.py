"""The page that shows a run: `collect` reads its folder, `checks` judges it, `figures` draws, `page` writes HTML."""
