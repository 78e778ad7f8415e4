"""What was found, as one page: a grid of small photos with rank, score and path. Nothing is asked of the network."""

from collections.abc import Sequence

from triptych.figures.page import document, text, thumbnail
from triptych.io.images import load_image
from triptych.library.find import Found

BOX = (360, 360)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { --paper: #faf9f6; --ink: #161925; --grey: #606576; --line: #e3e1da; }
@media (prefers-color-scheme: dark) { :root { --paper: #12141c; --ink: #eceae4; --grey: #a0a5b6; --line: #2c3040; } }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 84rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
}
h1 { margin: 0 0 1.5rem; font-size: clamp(1.4rem, 3.5vw, 2rem); font-weight: 650; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); gap: 1.5rem 1rem; margin: 0; padding: 0; }
li { display: grid; grid-template-rows: 13rem auto; gap: .4rem; min-width: 0; list-style: none; break-inside: avoid; }
img { display: block; width: 100%; height: 100%; object-fit: contain; object-position: left bottom; border-radius: .25rem; }
p { margin: 0; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
b { margin-right: .4rem; }
.score, .path { color: var(--grey); font-variant-numeric: tabular-nums; }
.path { display: block; font-size: .75rem; }
"""


def sheet_page(query: str, found: Sequence[Found]) -> str:
    """The page as text; write it as UTF-8 (``triptych.figures.maps.write_file``). All texts are escaped.

    Raises InputError where a photo has gone since it was found.
    """
    body = f"<h1>{text(query)}</h1>\n<ol>\n{''.join(map(item, found))}</ol>"
    return document(query, POLICY, STYLE.strip(), body)


def item(found: Found) -> str:
    name = text(found.path.replace("\\", "/").rpartition("/")[2])
    return (
        f'<li><img src="{thumbnail(load_image(found.path), BOX)}" alt="{name}">'
        f'<p><b>{found.rank}</b><span class="score">{found.score:.3f}</span> '
        f'<span class="path">{text(found.path)}</span></p></li>\n'
    )
