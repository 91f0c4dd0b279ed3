"""What the site gets beside its pages: llms.txt, and the pages as Markdown, which it links."""

import shutil
from pathlib import Path


def on_post_build(config, **kwargs) -> None:
    """Copy llms.txt and the sources of the pages into the site."""
    source, site = Path(config.docs_dir), Path(config.site_dir)
    shutil.copy(source.parent / "llms.txt", site)
    for page in source.rglob("*.md"):
        target = site / source.name / page.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, target)
