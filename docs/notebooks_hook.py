"""Shows the notebooks of `colabs/` on the site: one page per notebook, with the outputs that it keeps.

MkDocs runs the functions `on_*`. The pages are Markdown like any other, so that the search, the colours and the check
of links apply to them. If the environment variable REPOSITORY_URL names a repository on GitHub, which is where Colab
reads notebooks, each page has a link that opens its notebook in Colab.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "colabs"
BRANCH = "main"
# In `docs/notebooks.md`; the table takes its place.
MARK = "<!-- table of notebooks -->"
# Tells what a cell prints from the cell.
OUTPUT = 'text title="output"'
COLAB = "https://colab.research.google.com/github/{repository}/blob/{branch}/colabs/{name}.ipynb"


class Rendered(NamedTuple):
    """A page and its pictures, by file name."""

    markdown: str
    pictures: dict[str, bytes]


def colab_link(repository_url: str | None, name: str) -> str | None:
    """Returns the address that opens a notebook in Colab, or None if the repository is not on GitHub."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository_url or "")
    return COLAB.format(repository=found[1], branch=BRANCH, name=name) if found else None


def rows() -> list[tuple[str, str, str]]:
    """Returns the table of `colabs/README.md`: the name of each notebook, what it does and how long it takes."""
    return re.findall(r"^\| `(\w+)\.ipynb` \| (.*?) \| (.*?) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)


def table(repository_url: str | None) -> str:
    """Returns the table of notebooks: their pages, and links to Colab if the repository's address is known."""
    header = ["notebook", "what it does", "at full size"]
    lines = []
    for name, does, takes in rows():
        line = [f"[{title(name)}](notebooks/{name}.md)", does, takes]
        if link := colab_link(repository_url, name):
            line.append(f"[Open in Colab]({link})")
        lines.append(line)
    if lines and len(lines[0]) > len(header):
        header.append("run it")
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def title(name: str) -> str:
    """Returns the heading of a notebook."""
    return cells(name)[0]["source"][0].removeprefix("# ").strip()


def cells(name: str) -> list[dict[str, Any]]:
    """Returns the cells of a notebook."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def render(name: str, repository_url: str | None) -> Rendered:
    """Returns the page of a notebook."""
    link = colab_link(repository_url, name)
    where = (
        f"[Open in Colab]({link}){{ .md-button }}" if link else f"To run it, open `colabs/{name}.ipynb` in a checkout."
    )
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    heading = title(name)
    for cell in cells(name):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # Links of a notebook begin at `colabs/`, those of its page at `docs/notebooks/`.
            parts.append(source.replace("](../docs/", "](../"))
            heading = (re.findall(r"^#+ (.*)$", source, re.MULTILINE) or [heading])[-1]
            continue
        parts.append(fenced(source, "python"))
        for output in cell["outputs"]:
            picture = f"{name}-{len(pictures) + 1}"
            text, kept = shown(output, picture, heading)
            parts.append(text)
            pictures |= kept
    first, _, rest = parts[0].partition("\n")
    return Rendered("\n\n".join([first, where, rest.strip(), *parts[1:]]) + "\n", pictures)


def shown(output: dict[str, Any], picture: str, alternative: str) -> tuple[str, dict[str, bytes]]:
    """Returns an output as Markdown, and the file that it refers to if it is a picture.

    Args:
      output: the output, as the notebook keeps it.
      picture: the name of the file, without its suffix.
      alternative: what to say to those who cannot see the picture.
    """
    if output["output_type"] == "stream":
        return fenced("".join(output["text"]), OUTPUT), {}
    data = {kind: "".join(value) for kind, value in output["data"].items()}
    if drawing := data.get("image/svg+xml"):
        return f"![{alternative}]({picture}.svg)", {f"{picture}.svg": drawing.encode()}
    if pixels := data.get("image/png"):
        # On a screen of high resolution a picture has two of its pixels for each of these.
        width = output["metadata"].get("image/png", {}).get("width")
        size = f'{{ width="{width}" }}' if width else ""
        return f"![{alternative}]({picture}.png){size}", {f"{picture}.png": base64.b64decode(pixels)}
    return data.get("text/markdown") or fenced(data["text/plain"], OUTPUT), {}


def fenced(text: str, info: str) -> str:
    """Returns a text as a block of code of some language; four marks, because the text may have three."""
    return f"````{info}\n{text.rstrip()}\n````"


def on_files(files, config):
    """Adds the pages and their pictures to the site."""
    from mkdocs.structure.files import File

    for name, *_ in rows():
        page = render(name, config.repo_url)
        for path, content in {f"{name}.md": page.markdown, **page.pictures}.items():
            files.append(File.generated(config, f"notebooks/{path}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Puts the table into the page of the notebooks."""
    return markdown.replace(MARK, table(config.repo_url)) if page.file.src_uri == "notebooks.md" else markdown
